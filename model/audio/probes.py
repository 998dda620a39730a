"""Whether each format is still decoded as it was, and resampled: an upgrade that decodes the same makes the same vectors.

Each probe is a sound with edges and noise, encoded once. The last bits of decoded samples differ between CPUs, so that those
agree that differ by at most 1e-4 of full scale. Imports no torch.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from typing import NamedTuple

import numpy as np
import soxr

from .recordings import blocks, open_recording
from .settings import RATE
from .sndfile import AudioError, Samples

TOLERANCE = 1e-4
ROUNDED = 1 << 10  # steps per full scale of samples in a digest, so that their last bits do not matter


class Probe(NamedTuple):
    """A sound in one format, and how it is decoded.

    Attributes:
        version: Of the answer: raised if another one becomes right.
        length: How many samples are decoded.
        answer: 64 of them at equal distances, int16, compressed, in base 85.
        content: The encoded sound, compressed, in base 85.
    """

    version: str
    length: int
    answer: str
    content: str


def decoder_parts() -> dict[str, str]:
    """Return for each format, and the resampler, the version of its probe's answer, or a digest of another output.

    A format that is not installed counts as decoded so: none of its recordings gets a vector.
    """
    return {name: _part(name) for name in PROBES}


@functools.cache
def _part(name: str) -> str:
    probe = PROBES[name]
    try:
        samples = _resample() if name == "soxr" else _decode(probe.content)
    except Exception as error:
        return error.reason if isinstance(error, AudioError) else type(error).__name__
    if samples is None:
        return probe.version
    expected = np.frombuffer(zlib.decompress(base64.b85decode(probe.answer)), "<i2") / 32767
    if len(samples) == probe.length:
        chosen = samples[np.linspace(0, len(samples) - 1, len(expected)).astype(int)]
        if np.abs(chosen - expected).max() <= TOLERANCE:
            return probe.version
    return hashlib.sha256(np.rint(samples * ROUNDED).astype("<i4").tobytes()).hexdigest()[:16]


def _decode(content: str) -> Samples | None:
    """Return the first channel of an encoded sound, or None if its format is not installed. Raise AudioError."""
    try:
        recording = open_recording(zlib.decompress(base64.b85decode(content)))
    except AudioError:
        return None
    try:
        return np.concatenate([np.empty(0, np.float32), *(block[:, 0] for block in blocks(recording))])
    finally:
        recording.close()


def _resample() -> Samples:
    """Return a sound at two rates, resampled."""
    k = np.arange(400)
    noise = (np.random.PCG64(7).random_raw(400) >> np.uint64(48)).astype(np.float32) / 65536 - 0.5
    sound = (abs(k % 37 * 2 - 37) / 74 - 0.25 + 0.4 * noise * (k % 300 < 60)).astype(np.float32)
    return np.concatenate([soxr.resample(sound, rate, RATE, quality="HQ") for rate in (8_000, 48_000)])


# fmt: off
PROBES = {
    "wav": Probe(
        "1",
        96,
        'c-jGg0Du3kAKW5X4IvDd|CSH_0g3xS^&a=N^nv_7?}zwo?cn>e_Ra-07oHT88N?Sd9&#-*EifphB?Kj(Bcdl89mfe13WN>P{Q2t9<rv&2-*W'
        'A%<B8<_=BVf$?fCBu_e}dT1<VTG5I7NE68sXz6TA~b5~L7L3xNlq{h;>=?PBW8)IN9',
        'c-jrhODKZ@0KoD89$#LYefF_U+PqqG5v|lt@|cO_;9w3)lbkqMyU9T*IV-!dgcKp=wvt-run5<MVrYCVkG<OGv3}Rz$biS=R)M#Bv~PMg&>#'
        'Y;BKJPTv}!b1nDPaD4aLJjJ@F<4D`R>Zb<CLv{;_7DU&pVCl>*~Ay3*LPXfm99v#2nirZdHIj>9A~G7klAKRM2DDR5Rwhne+ilp0oRiI{Pja'
        'N6*<60zfKrM-ng7u$BUcEW9JG_&d8#YUZ#Xc<8RQaMX{b`)+D@=5aVTqm%^iN4~v$1kH#u=mKy6QKmkGrO-GC9%rnQh2`5Wf>|UfKwn=&V|U'
        'Gh^vazDkh95MiwN_CBhQD5<Nz?M7)&@SFl(@N=@j8P!{2XGMTG4CX@ddf@Og',
    ),
    "flac": Probe(
        "1",
        400,
        'c-jGg0Du3kAD90?^@sS*1;iIhIOiUw{3qZ1<_z~Z5xf(D2V&~K=f?wGCsGd1+q&jz7uyoU{VNfD?Zn`a8c7SJ56B1o(ew)H@N_F(_SFYB*MJ'
        'KT_NXz+@OTIg)hzW+9JK>D7MS#k-whO}4)^)C23Y+q(<SQF8ptRK2mIDn-xU9wGeFn',
        'c-jHx0vY{gOkqO+001Ho01yBG0+0X#kP5^=@Bjb-kP(0UO3HH?7tzQVvw39AK7;@OC?Eg;0CHt!WpZV1V`U(0X<|l9K|>%hE;KGPATlsAGcY'
        'zXGXMYp0RQ-T2mk?(&=eo8BHR-a2~Mrf#lwP1VcR0pee=CVq##9~O8CK*BS&cCB=}+E5+zHw9|31$7J6Yta3Vst>Z6vj;S88(qYmx7aK`zgf'
        'UD_1g{+R$kU(YcyTrr9k`|{&s=*VXLV<xH_C+V@2s1z#IuF(cueci^A<816f-WN}HzS%nBhoyhqBf%v00%D-TA4v+_Wdt)4^CCp-G^dVm4!6'
        '~_!vtpHmS5kr)KRw#3+am$K}{+*CfppftKk$IyF%0#apQKgW~0LoS``9sGk?3L=G@D#c+f(i4w!`)hk<hFRj|Ll%t!#nsR^(zDUra33=u$t?'
        '~)w*f|!LNsX1u%}n)PU>R^KV`4jFP$T6jL{*{nDssfEa;|@V+00I4rwi8HOkk0iid6R1xpG%=XY_fqwnCCow;%EF1Xe6mAM|Y^MG{82Dk;g{'
        'sMUnZDMQ#Kw0Qb1+6(Gg+Ihd*E)_VLhF&cLPhieI^(J*Tc_YxCs|makSn@^MSqN^zW_J*l)l0{)Bge}2W%9nbdL?}HLn}~Kd!RI=k!GJY(K3'
        '};rK^u~OECNn<Y^yH8Z(HBN}l5uhQ4i^yH9k>(tqQnKgwxUmO)$Y()$b4W<!w>*oLES<x7pkr9P|vg%CE6s9})ItvVx2km-ohRF&`RsR@C7?'
        'tYBcpE5B+-@Q|6zUlUp>ehLcGbvStExRhhCbVVENo-zNEQh=i8hmWu^UyeGP2=sMif?d4!koD4-0++S(Mj_;2ocv*Jrlw#YdbMas#S_PGQ^7'
        'Acw5;65Zj*4HkH`3#x(T9rDjc;KG9~(S`B3vA-wEtxr~c<Wc6b8<L6?Q6RwJ<LfvRrchR$B1YIp!CI',
    ),
    "ogg": Probe(
        "1",
        1200,
        'c-jGg0Du2HBGmOjHkR5$4pHlNC`Ip>{Jr5B3v>z$_tysU?a=-r4YCyv1^em$2=M?O49E8E-xvO8-4Xkn1Cj@A0h$Ak($)mI%?}Pq^~VbG?>z'
        '&O<zXOu{NNFa-UAks>dPKE>$v%T+t=*U0RRi}>2DI?1##@9^9bLI2R{sf__5#?UO_b',
        'c-pmAeN+=y7JorL0z@`tBO4KHf~IDGP=cZjJ#HZgk_jSCL?NlQO-LamAQJH`wQi{dYHiv@oKWauk6<R-1QIclSVN^$o2bZ1X@ua4pKTQ+(vQ'
        '=vcGq^hZ$fRm=j^}x&Y78e@9*9F?!E86J8xq}g#?6vpGWG8&m!b^`$s3&QI=A6@2Hcjw4{KN{rLQh{?+r}PRd476Z}?_0>4Fli^HR(KRp_b1'
        '@ksmL8w$!TbZ`8u7age$+rZhED<XsJtIARP5LSp7gLtkD^xWVth}1ts=6ID)ykS(L6foY$t%j;xGoP{3sto><u9r<N=n$g<yc|v7C4InXc&X'
        'dSu8;nR0D<~VTp=j+4@AqxFDZhPM7Q#EhhGCOg5CF=O4pLk-S7np+scB+99Q2ND9~zKVR9cWr$luksQqi+pakAOsArqpP#7kO3}j#KOfG+Fj'
        '2Rbne`&4oRO99o{_(to@M9}a)-`c$L{i)56BLjo{X0Scsiz7^%3<2?VMxcDq7`cD)fAh`!fl5-&ku2=_kkzr38JB0^m$BEpJmJ31o+ZM!?A1'
        '$vC$&VSU^3iy^@&*?`;|?pwFGZOcS$<z?;4vUXEL`+KJ>Pd>Dz1#EM(t{7cQUnn>a0JDYt+I7)rtE5%*1X408pmu*3Be=~d_hFt6xqg$kRYK'
        '#3@mt1_X8L%MfS@H&a|;fads*VOGdJbaPtoJ;Nnk%*O`oG@ds?+LG@M=cmgqcdomYSy#tTudb)a1o$uszqrn~SW^a)}h4!dZ?{lb(m079RFP'
        'bsyzrH=}F0H8OuVg<;@xV(t}8jih%oNL8K1@4YIJ%5I^d6a)XL05pdnc5=39acFl`A&k4mO<`e41D5*-RzW*#-}KtX}RhhLe*2LdWZXx={-v'
        'i*J8QdV7l9Bvb@w|wwNp~o7rO1G`y=K(RUGx1+r?3C2+t}b<xy&#d+7_yf<R68MOCJy=xh9nqBr9i>-Rlt_j#ur(9n&SY|s-ftO5oU6#NV`>'
        'e}82iXIblqpkS#2y%NT1V_QHAH)Quh^jO+z6@L_s|rWb<U2sY$NtBr<}Hjc5C$DjLT^ovDtd<eE~Z!;M7bBFMPXsV&#U(?+P!~mrOdUC+e$Z'
        'kj>n-wLNd5UO8c?-&U`bJ%H$jtp??#5@ne|d2P3H>)Uy7a!LDMh;Dzo`q~3!+2r0!_4P7?a%!ux?16IIgXXf6d#_1KWNWr<o!l@vu~#;^_XT'
        'J5jXyxP<nR9GlJ@!={=LeM`orli=#cYXz>*pmvIRWp0atpTtNI6<HTrCCz;hf5uMYjCYHH}~SttJkS53lT|B?^q9(s<OE!BUu^#)8S0hcB)v'
        '?Ji!sfVm3^`UEagk--C3_VFZ8klt@Uv%|fu^+qWN}~<hmYl7cI`icfSM8`hjdt>@lyk?Tb0?h5w<hY3_D*?rM4$Do**ye6BP9Y>`R_-vA8m0'
        'so4QCrPxi2MbS#Q(+{_PWD`HSj0!~LoY}^Nda#(^1hv;af86QKr1W}BNyKz5O#WRgdY25=1RAt3|(kjF`j%lE&jA<j(;1UB{P!*yrL_J50F~'
        'VfR=tD(TrB`&}$Wfo5z-;tkBD13yRYOxKdYtf~)mC>rs^S@aQV5J=)mDde8C+bSbD`@HhKkH^jXPa<OjdGdQyYqy4Q*Io$01)1m(!$2MTDab'
        'O_?{<j7inji4IJhiMK&hZn%ck5id!}Y%a#4;faCnI<}~*c+O&>y4x5hPUbt}6mW4S1dOpV#O#ify=irnO2nD%ZE}ru;xft;_@!!;=l5ZHtD{'
        '3!c*<R>UdRcWf?lCkw_j={7f(KJXp@o}Qhg@wlOu?u71cmfGEJtbU9LGkQHs66_mpbIjtN})1_Z<@nI5LPCi6B1z;NRNklh%mJTlg50ND%xo'
        '~J4FIhBmMQ33KM<`t~qXk&y_MCr|;vI(z%N(_t(BD!&0h#&+*#^n%xX(|9mhADtG9KPXoHzjIeStM8oSr6CE)OlD0vuTWZlmR!JU_w&_L*dO'
        'i&(wNzkj0Q%!O_u$2mxPQ0*5^)Dgib=%@|&q03BLHnRiG|<F~MOVOhvyx<YgXaWGaIjVRmE102t&^mXgUmkT1T&HfBE$K#XdTR$$9Cj)Q~I&'
        '^PX$X!*=0j&`roAkgdsG!SXdt|So@?qzJ)z?MFwg>_dY@Jsy4U17Y-KC`qsohQRMc_Udv<^e>vVu<TA^{wO-8;D!0BZlHa_zo@M_{`S0S&Ok'
        '`6x^lk&k#-Muv<G7^||%X+pS9rLejQzx*D{I4;#Yc0+*Yk>-+s+Dig`nUf@N=jt93(0We+a5XFf^e<SFw|WILGWk&u(6B-;cnz29`O{swDBs'
        'he^&%daOTjb=K-WnCvLqk~QqxD8T1jdwXNF{{>|Ia>WB*@4+#-X(F%%)->%F5tQz2~Pk?jBdGW@p)ux>;}fS)3kRFsOcQW6%Xk$IrQUj_3lQ'
        '>Q1B-NL65yNXZ|CsUupCA6_nt7%MH1y4POF4p1lXtn{DM!}w-M$8Tz<09^OF={6K8Pm&+ZBnt-*&&D^jDBgA)lC<o#~pr5eY_t2?X3>Kw3=t'
        'crD~qXFV}F0cB$G7k6WSH5hoLqGO^WtSq@KCd^EUOQwtgk`ggV%j3>@~dNY_xHU)%cpfK@d9kH<ke7FxJwGQRqnV0F{R*_`|E2=eEjie0Ag0'
        'f;Xl8k>kC?lyz_WbdH(Lw6x>~MaO5x-LSuT*TXR)dr0tpwG$WH|?^NX{>bX8$JTpm71&sh7<xKRS}6S#|5o0y-eCA|Zv~Rm#47o2VhW$Ed-3'
        '9~FELKtWXF{{5AAXfgCyMjSIfVJRzVIrz;84c-+)`$K=dE0R~v)Uw29!?W{qo?idQGnT4{LrF(tW%lZwCk7wvKi7HwmGjwK?!O>k{p0QX$+4'
        'SHf8M-#vt@Pa_Kk1$f@9ZK4K5tC6`vAdjrTA4)qG%5H-D$ejvW5%Alkn=D&@JV{Ykg*FY;?n56m^y*8c6eFP}W|P548Qy=T#Q&z(<Y&-`im('
        '%b4#YQw)GbSFDxD|4^@yZgtu(4N4};p@y?qa6J3xP($Xm-X2;W912ci`M&1ToLbk@%Fm+3;rnod=8FL`vmwQ)<RiY@bt@x2cthIDN6oAw&I<'
        'c&VMfUWG~o)B!jan;Qh_9XW)=Ftt8AGm=5h^B{-F@9(*7^d~Dw<756O#4TG7xhC>t6mqu(dQQBua8<xHgtGbu+yn5^JfUfJ-+t#*~d=K;7pE'
        's`jg#FRAiZ!b%m#l5cyw2-eKgoUndoC+*<J+FepEf=7;g-wGPKZKoU(BSmr3ZFK{)0y;*PosPU}&w21)f*TeKI+@JU<MKeN_|FnD|U<;)3Cu'
        '6tMM`v^Va5YRLbpwkzzM==BRXu2cR4v0DOp',
    ),
    "opus": Probe(
        "1",
        1200,
        'c-jGg0Du1(AHVp;Hb2~m4xs8ZD9-1n`^4qm4Wtb&`PmF~@9^<C5JeRl1FG!+2-F4n4Px)i?$`S;;7a@X1%v<@{v-Gs(MksD&IJy4__hh1_R0'
        '4#=>{g6{go2h*oYbQ<uoDf?E(C**u?101SS(A@2VK;3YF~q^#9|b3APDJ`DEY$ghf3',
        'c-r$%PY-5bVt|60Co|MQG#8sm7o)I$L20o^YGMi_qXnabJXnE0NI3(taz-FM%~E$V%m4rXr9e7D64Q&hfr2@iN%=sof}x%X!zdU9BN%{l4NH'
        'V9BG-U&TzDFP9*2{$v6Y3Tx&4gVRhQjo%I?l!y`~ZOjqjJG%2i*k{rA=~f3_%F(0<+U*n5?_lW~a$1uyfQ%&Yo-*u3)**RQTU4!d;Ub#;}vt'
        '5|W)ILsZ~`&uq|R*|#D<-9EJ8HX>;aIso_J67n=6w!Xhd6B;>E{i;QoxNw;!=hi7&LV0nZ_cQ1XRv5n$20An)!LAP8;WJcXLh|g-1@i9+pn8'
        'zvfPuW;hSdnevxzD5xhWPVU?}su1n`;WX|Yxbn;zx)Gj96VopKF;VEarSXT<>r0#noApZII-=7^~qTh{YzD^J;vtIfn=5NF`UZ0O{*)a$GX7'
        'Gm<L~m?!uHP}cHR?y|i}Pnh*D{|-_kMq#>%4~LZ+qEi+)c|@M*aRC;1GI<y|_|9eR}LJlcb0l?us8ya@_r!EcyOp{jzd7j!PG;Oph}^Ik3B%'
        'v%qbAiekdV{u>5KQ=bXnnDG8(oU4!Yj1R997+y`CVV+%m%)acUVR&S5*7U9o_j)#UK37!sdKYt7uJe71QOdDtyF()!bhyl~=X9n#5m;n7+uN'
        'sEc}9)m-t^r}Q~aCRj9j%MPMNfxf533)*292T=Ie_^UK_uVsbciC+{>L|z*oHgqVb2L|MMp7?aTOZkE2@GyZsjcn!5l;',
    ),
    "mp3": Probe(
        "1",
        1200,
        'c-jGg0Du239S!mdHu&JE5$@_TCotw6{c7MI5S0oV_{s@C^4Ijh6D}8|2PElO2J`>z3C!~Z<i7h*;EDWp1r!6H{zd(|(KG(=${iEy`1uQx_{0'
        '55=y4xN`dkO#*Gw3q<>($T@0j_c;+64J0h$xk>V6Q`3FYUE@JQnR22%>M_L}Ou;YHm',
        'c-s5_*y9KT3`At+r2{E`AZBG?U^8H_zyu9gz;P_#BNp%<3jo?><KyV-YOH5yV8EgQbBZX33QK?@1LGNxJO1yy)yOa~;6EsQgjO)Us&`;uNYS'
        '2|7+(92f#Hv12P5+Y2g9a>A9nm785ABp_)-7#{7V+gf*N`I{~ihwpXvexSPp)u{SPGS|NjRPdi>1~{-19CBf!Ee|I^`+43{WpINRcax29`V&'
        '3re#4zizkZTFY+UsC6@7#Ot}Yw>b8JW$_p;26vO3yzr_JvyrKCnt$sbn;-}Gp(95bN1?04FWnJ*I4;jxoq$+p5-I5iRnzw+YN`?QXf}J6)oI'
        'W^yf$n(~IR3%S3nV=njnC{mSA}z)#=63&-a$2pT(iPdS`Aan;pF=7}>-U61d(6ZiM_kGvZKi4&sO3S2F&&NE>=+gY$m*hx-o!|QD_ZOIcpzq'
        '!8j`<oS_k@6P~|8)MkXtMaC2N#}+aQCJCe;je-gx}#q*CJ<M<T$>pNI><-w18JmPj_6~A9<^2=Z@~bS?hvLz6g3e2{KpQFEJ@F`l?cVLld8n'
        ';h}aHrgrg(`Yg(ghlOYC@)31-YFYl(SL&X*)<fUbp+&3r6fIf2<gndC|Ea3kM!&Y-P6=)??_WKc$tm`_=!qB$qZ40w7&%;-8_uz8t_)bp#h@'
        '(lxXAGT*Ck#FCm9+NC1Q>%cyO^wNX&R4@%xZ7M|+dRj44Ierh3`&FitxbaPa0W&E?DscFE7WczvV1M*Q@x#fx@WTDQ9;wCULNd{SqWci?8sT'
        '(jJ4(}TmO4^K3g6Z-!$dCS5y2O&lVPaa!0jh%DUGTA@J9-nf7@8Q(kAi->dUoR$<O<F4W!b>LO>@;Id!5>Z*T9T~dZ}#3wJT+_4Onvj*5`%A'
        'CEAQ5P{`0%v;O(jRE0-yyPMhtq^2_cXPOcQEs-s?#n<xDitXkuD=c(Gybou+*!EPI-dcF1Ye)b*|&MyL2A9^e~=OWLI-phBo{f$(Z9iFcAf9'
        'SN(;aOwnmZHha6uAHVc3PfuYFXYTm-{c+G`)Lc-|36Y?!Nth`~P-(yU)7}ig?qE_q1I7U|_*F=kv;hn^$aDduCidneZye{7CPs%0R&@#g3{H'
        'JUVP_hm#B@h#08-2w)9nU<%eaBIuK`{{LSsrv^1H4FQ=16}M2m4E}`l^Z!32-t6cV>X@-XlcOU*RxC{V|KBC6B19_{KA#urbq)~jnYaJ{{}('
        'CqJ+rP&?=}q$2`tE%-MyG;-=)>@!0i9w7|+Vzss6^ETTaE@%DVLYT5wvh=G@MDP|<KK$0EXX`Q53mx6TMH&{tV?HS5|UquKWRy!L}jj;9vEV'
        'apaSo4IJp&9!~2Q}_Scnse>+&eUvZ!J-+uNB-HPL$Vh#9-9>!H8{5M%$UNKlUR9BVY;+u$9}_C>0kDpNI7@s>WOqODL=JUE9Y>qOiKCx*y6|'
        '^`@>b2B4=M}keF-;Dw^QMQ|QnI{~t>n0T%Sk9*hSV7$`6Y05A`ta{',
    ),
    "aac": Probe(
        "1",
        3072,
        'c-jGg0Du1g01p87|0Doa05bq~02lyV02u(00A&9T|F;0w{|x_)0E_=&|2hCC{Zjv*3-;$C5<D2T*P<oq8fyEz2A>B`(suD1_|NG>=sG8+2i^'
        '>O2Pg*+|G^gg2T0VBB?9{n|Iipt?=}4L1>FgP-DCH!5*ONa=<)y(<8B4oE{y;(XgGW',
        'c-jHW1vL8q@oYdwfBfD808C+aV>U7_GB_?VFfsrFT&P)Uh-MNMgJCP=l9G{fnR9Y)SygtaQm_BuJ$u-C+pc-boHyUoJ}<RCPv|-4mb_=dyjO'
        '(-@-IA1^rR->e%b*2Ni>Pg;OUabren$DF?ocJj=^u9%Qn0t%{_8P_mo@TtQ9zHqTg1;RBwAj8y=fQi@vN>?s>!P`)s2JxAPB_%<A+Q%spPYj'
        'Lh}?2f$AHz3+(OGk=4A_Kjm>^m~`8af%;D*YF<!jKTaKS5o*6F#Fj0y>7XjZ4#dN{#RRo<C|t8lE2FS4~^^c84t{QC+#tjly-dYYwG!4E<L$'
        'tu$;tBXBdt-v~3uTqiE`zM$w4GPEIt8FrzcU|Bw83@A2dcumYoDkRJ>%9|3~tFl{52!L*PTg1zMjh_|QU3-wsNH^y6K&wk6f={si|1|Y<4V9'
        'oOHrduoOEz%Fkhgf6>_@Fl?1~)+-AR1hEN%}E*hl!QsAt`1!l=nnEqdUvT=mDqh1nk;jy?I3Wi?eteH_HP#u*}OrnPFRE4>63U&dR*0KlNGs'
        '@spgCJsHB>OJ9X2Q>&8adm<gjgOZWHA>A@0{3qhFS+|qrd|ZcQ^T8gwlO+R8PmcMVmx-Ye<T$b$uMH6J{uG}z<;3`hODETJ#5h+$A<TI(4kd'
        '>tkK+XSj~BbKnKBs-&nqLas!v6XC#vKGxD$wLvZOIPVmmUE-D^qQ!IH)}hWB-5&*1;@Y(Px^`~gOu*bEZT%2vLw@h1N*aoKq??pOW)@&5dC@'
        'A1!{UMoJmtN$PM;qS#YxzE~vpYQ(tbNYSdXI<U@P`@fQ)Y7i#QrRZQx!Gdv>dR2V=-DR!3}Xk|^9R~$PPU2E=zZ!xEQieZ47;<a@)=TRVWXJ'
        ')!yk>Pedpg^`15alJFU3Z*xAJ~iEUMr6riHH?Y>vSY#K+5rssV#m}WJqa{Up=LgxKyB$F6rV3zj6^vUk1?P%Fo?$Wpt96+j#km+cEeJ}8R*4'
        'kKsRZtld`d)g%VdiU=nTjY3FvDV9sl}24GR+=EzbkVu5brzVwHlY9jBT1_RI^21S_B6HfzY{(fdL)#95KfH#i>}WI~{R#Rfhg|^}ntA?!kd^'
        'ef)PKL|BF>`A^dvr4;dQ;jMwK<KHFNhn_oo$y$(xrVQ8^?{}(n1jodRK6S(EYV&K?1@p~n{fYE|xyM+{z-=!<-cjqdRMC=b7tTxAmf7T}c(~'
        '#=Lil~@qPVq<(o!Yx4Gzn-u-6o>0n}j(CV-=UHk#{%XHuw7N-d&?7+f4asdDZO#<L61rx==)OBAECcRY~@e#-{iCOUFEfi@iHQ5`6=sE=hGl'
        'e4x&k1@R}4gfN&8!2fnZr(X-ZUIIbQDz#m9RMA}!g&d7(~a9d^S{x5ZU2e+AO3&!{!fVe$D9jx3;4f#z{SrHTYQ_bkNsr84W*R><`!vmKD@+'
        'oxHTW@EW=DW+&_D5z~=s&{GK~g%6(VogbF&44w!p9r|Eoe=YOx_zYzVW8b}c|Yix6kB;Ap6ad_VB5C8FOKqf!@0XUzvaOO6wyT1eS{XX)y@!'
        '_`|S3m9kynS)LH>i8>{DvaCt^8kW*2SwhlI2EgOuJ<M?0Ru~y;!iCuz0Z|o)A3P175RWCy+ppAk;!bVa6)=fB*_8qLe5A7*n0bl1t|F*C!f9'
        'c3$n{ZH;9i9YP5_Mw8p}dV@itk`fcCixdD17}9_M0L@o!25r-THGkY6zq)MtKfk+7!y<~SKpgELArJ#U(#z6-U!d@cbr9tY0091&BzJNV7o7'
        'kAt26zv5k!r0U;qsUn5E++A}>k+0Z3)~QhB}ff+TB`AxHoK0H(y)jOfb;ny?TSD8`6c(SQH|05T9YRxOD&lwqa{X@!(n000000001IJkd+Rs'
        '*El~cGXbCXAdPrI^mFr000000l<6Q>gW',
    ),
    "wma": Probe(
        "1",
        2560,
        'c-jGg0Du2j@hARN4@dSz@*fou^&{Kq^uQD@0rmKzINK-$6ubK;=KID(=}ru*86*q<6MPa^3o8Ot@xbLK_)+yT@09hz22Bc&9JK3b`Go6>%(@'
        '7w1VaC05H$ae3H13<{9V{h@bLt>_|66m6<`e&1@j5k`pf_W`lanb^KAgV{t5t<xIRJ',
        'c-rk!|8Emz9RA$(y0)z7_1IvUK(0+~T6OI~x~Y?lyQRiE*Dl>KV35IeZotR_i46V4u;bd`#06;?u_0g>ozO`L>4agxWEC~hINVm_7h*NU5ka'
        'D6Bxac=F246=ogw@KCimRE?|tr*_ul7yp63|P$iBndCmd&P!28htRrenls4$~};e*9<{m%_gI1b-}yq(_Axf33YQxEBd)bPzuxs#Z_3FKR5w'
        'KBX)eXO)=eOy^;*G9e#;F4)<n_uCX)_DB-_m0BX=dLLIU$lOi+GU3(3zq4E<DD5e^~Kg~v_oHwffqJG1Oo6Z?1q<N4|G5ms&>Ez=!710X>WV'
        'Avp^VP@G5MFI#>&SSfkGjdIBUZ#mkrf!~BZQ!M@uy7kO#Ik^KjxZCgT*N3VY}_I7N-@zx0P@8Zw&f+H)@u&QTL5JQeg4FDgO1BgJv68*gDET'
        'R@F+19CptJX|9GDAp}iJx6i#ogD(RR2~WrHYykr1CYSh(@|QRlPA(bFfdX_n>+sJf(Xc!|Lu!d&K_WJQwoAFd2o=Hf~cxhJ#wLR#A^qgdZRN'
        '6Ybo%WEXMd(0din_y+Io|IL$|X&QLr^UAJZ0~hhV7=1J1%O=nq97>T1*CCPwygk;}NG6<6>+>-<k&1)_kNFzEthjUIS$_V)g*mG^@Wbk61Pm'
        '_`u2TtbDTL;nKTv$6zP`p1>L$BoO19GIz9U;>1QRECn&cT#5<iwh5`R1)@x%efhVzt2v6P61p&&w`31DeTaI3ec2UZ*%ykzS6PC|sH65$q=a'
        '9SnoUPmWy$8WEHdUnd$Uo%COb1#sat#p5ymdiQwpeq`Z-Bn>XpLAtyatmF3Y*&TEn`<A-`=kgf;H@l?W>YLKFl4ph&MVHIkO1n0dccSh;p>Z'
        '*5?3!Sp9ycmZS$eb+N*mj@6L^lWU6b|Cwf<pj$a7}^C_|ZOK(-j@nepb9Rr2jqfY<nzH84@RO`T4;9F<l<OieP{l8!LRyeW0db!P5;O=>7)_'
        '|EygeMj)HTCCu|GtOKHwN=vTbtm9=O#MijIy#IJORNp2n^;S(v-Li(uBlUvPW$2De~BxbaBXXhC@EsX*o-4S;W7m@5E0(ndwsq%SwbFEfQKr'
        '$MLp6W3#l>eROi+zZ>?Y@+N_S6w1lQV2t|!BexF&;`%IV=WX#adli#(CU_S|S!)P#x6W4NETQG`%=uq$stUn?0RsjM7%*VK!2cHi0?BYb)c',
    ),
    "webm": Probe(
        "1",
        6000,
        'c-jGg0Du3m79bm1<xK3n<=z5<4Urn!_x$}t;j`~1`xPf14rTPI0L<;z=iA+_5~UAz6|(cA**4^i0jCb24(Jze=a%*r>(JCp6Sfon4dUwX`=<'
        '7c@)H5H7w!o%^RM~(@W}3q0)G&O{{Hu_;ri-X<Wd&77y~5q6}soZ^W*yL2#gHdCP?1',
        'c-oV4y}x+AQ(GgW({~{L)X3uWxsk)EsiizMDc7kT$Zc(8k_c`{XJh~YW?ezw*(JMtcXtP`ZV~ldnHIdJaUp~!7P2lI$h+aYy9dY<3OSq}yrz'
        'lK3Br{L-VKy&Vitb`F^3_NfmQ(Is!dwgH#YM-Iruj8`XrX6nHlLB0+E4HxFagxrL)5!VF6eh$oWs#L0uPfy^*o_Xh-zvl`e+o&hDDi$e^@!P'
        'IGBqN=G9@TbpCNe?Vw(*sA7ay#-;rTUd^4VQ6k-dN^@@BjeT%hw~0#Ba%`Y1(Fv{_Ae+c_DD@kVPv#mY_J2%fP&^maq)uW0}bgXX1OkIclC4'
        'jcX17JX-9Qjaq*_)1Kr68XQZE4=(@PWB{aw}#M9r;rG2u2ffX3(85$cKfB}QN^R`mQqUVhai<dSsFf@3yYJE9$jPbhaX0Pwp1z#_(R@dHtH2'
        'U*|7=br+X7-bm8y0VAWDo@^Yw~sWvG07EAES9r@58ej4_QtedOl}CXsT7`ri{MA#}=&S=UFBNF6n8=4#+4d0O`^M>RNosz~_mfL-<ZB<rCrj'
        'J7o4sHl=lZl%1QkZ}z!JXY+OO(zlXSyZ%3JNq=x^mc`=rjSRL89((f6-F(~j&9LvwoK?ql?)F{hIazt&@Vmp8nnVqftLE4K-6C6iZ^jf8>ra'
        'a}H!=hQHB6|zFe7<e-K~f9TwKbMz7Kt}Pv)!%f3o=D$>R=&=Rb+YPV4u+p|^fP)8D@q4;JrgWJm>SN_{H5wkG`k^NKP?)&A{mF^eS5t2gJIe'
        ')DGbcGl|_XS$ALWbhryyFKw>)Vmd0w`y(Y{8e>Yuw&txMutiTk3F^*tP3A}yd}r3yDFz!|Mh0s)^z?uK4&9~yq+IDfBx@6)`sSTGc9H}@{}%'
        'WVQAc}07~E!clQGwyuAyUkv=vt&i~NJ3;^>wQ6c',
    ),
    "soxr": Probe(
        "1",
        2572,
        'c-jGg0Du4QCD|U6>vr)Z3m*pI5_;nZ?U)BcA4do3?7Hkr2J9c!1{>|C>{<ruA14MC?XB!#2I(Im1`qAC>}Lk)9~lM<?X>K72G$=i2F&aa?HL'
        'A`AL<Pa=H1#*<L(ux1Lxp{<Cg^6Aaw<k?7{5b0r(F~^0?<p{(~3?4W$5*+xY_57d)E',
        "",
    ),
}
