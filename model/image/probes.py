"""Whether Pillow still decodes each format as it did: an upgrade that decodes the same makes the same vectors.

Each probe is a picture of 24 x 20 pixels with edges and gradients, encoded once. Pillow 12.3.0 and 13.0.0 decode all alike.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from io import BytesIO
from typing import NamedTuple

import numpy as np

from ..head import BadRow
from .formats import FORMATS, open_header


class Probe(NamedTuple):
    """A picture in one format, and how it is decoded.

    Attributes:
        version: Of the answer: raised if another one becomes right.
        answer: The digest of its pixels.
        content: The encoded picture in base 85.
    """

    version: str
    answer: str
    content: str


def decoder_parts() -> dict[str, str]:
    """Return for each format the version of its probe's answer if it is decoded so, else a digest of what is decoded.

    A format that this Pillow does not have counts as decoded so: none of its pictures gets a vector.
    """
    return {name.lower(): _part(name) for name in FORMATS}


@functools.cache
def _part(name: str) -> str:
    probe = PROBES[name]
    try:
        picture = open_header(BytesIO(base64.b85decode(probe.content)))
        output = hashlib.sha256(np.asarray(picture.convert("RGB")).tobytes()).hexdigest()[:16]
    except BadRow:
        return probe.version
    except Exception as error:
        return type(error).__name__
    return probe.version if output == probe.answer else output


# fmt: off
PROBES = {
    "JPEG": Probe(
        "1",
        "a9acdaf6b2568b89",
        '|JeWF01!$>Nk#wx0RR9200961|JwjV00smF1_cBL1_cHO2L=cV5DE$j2?`Vr4-'
        '60&6c`v66c!d59VH(c8zUSR79cDjBPJ&)Dk&KsEif%8FeNA{DF534LjeZ|2MP!Z6AB6wC>j<TC@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@'
        '3f>C@3f>C@3f>C@3f>C@3f>C@BBJ01*fP6aW|l0U`hb5di}c0sq7R7ytnP0|5X40000000000000031O)>B!~hoo00RL40000000000000000|'
        'W&I|Jncy0|5X65CaeZ00F_d)ul}vXlgQSlkhh}y1)O#02~ki0|5X60{{R300000000000RjUN5)%{^|Jncu0RaF31p=R@FL0kR7;r2M`b^^pnM'
        '!elfB(b)ArSxp0t5#D0000000000000310|EpQ5)&aJLUEDd|Jncu0RsU6KLL<&sH=^qkV=8(>9?;`nan21wSWJ_03Hzm009I70{{R30000000'
        '00100IOOF#{q|p|Stk00;pB0RcY&%C|#0n_q9qYNr)R;#-Cj|HJ?x5C8!J1P1^B0000000000009C603v~s1P~D*Au)6R+5iXv0RRR+0-4-'
        'pRH)_W?lCj2Rathc3<0Br`JJEt!~h)-'
        '00RI50s{a5000000000000AKpK{0`m!SMgu00;pA00BQCU_$TBz0z+l6wl8~i9{@Xq8K<dsT@E5+5ij#0RRF30{{R35cKyz|HJ?r5dZ=M00RI3'
        '0000000000009vIAu&OL!T;I-2mu2D0Y4BLz(Ffbc#^H07jgCpq*-'
        '(S!~h!+0RRF50{{R300000000000RR!9u^};G|Jncu0RjO5KM<y8R><|<@XQi96pKu);(!0d03i?n0s;X72LJ#700000000015da|&LBUaRk)g'
        '5C@c-HX2mt{A0Y4C;rypd%yNP#zQ0G*9m~=tr*)${Lp&LV@rJyZi0ro_?;J^Rb',
    ),
    "PNG": Probe(
        "1",
        "272578b020d5112e",
        'iBL{Q4GJ0x0000DNk~Le0000O0000K2m$~A02tS5)Bpeg*GWV{RCwB@&%F)8Fc3iDX9#~WCL~BmOuzsP04<_V$rRL7Y`_L=f}o{g33@~dDpL?p'
        'WMib*)>pVVJ>3bdbphc73W*38p#TAmK-Ew)gb|9o*`e0k;daCEj+51Q?CWQ!4Q-qqP-'
        '!_+5$RkPJZ*9|b#>;KeP#0T{zT#|BwbsvyE;!>Y$b^??>emm|4-'
        '`~yhE|UJ0uOx(0Y?g`Yu@hY}ADw#2}#$%54lv=%p^WhZCHTB;jhEHh=_%Fof*$Dfxv`n@1>v6f#5I(CD*K2BWGMWZiwb(>1=r00000NkvXXu0m'
        'jf',
    ),
    "WEBP": Probe(
        "1",
        "3efbe07386084f4e",
        'Qb|Te6afGLS4BclR!}$~2mt^9@CE>#0V)^(6aYSzKA1=)qoScO3;?haiEIF!GK6(^rts(Q8H&R<dVuG^vVa2^87`NSOW(SQ(J3{u4mA#d0RHJ;'
        '{W1CJK9N<Y_IUh(ApPZLX!uJu-'
        'D`|kn)Jto>;D+SF14o|^qI6*|1zSS=)@hH<BUpR4ze{LdF>?*J8^Bg{XKW?Oy_|gtmzAP3l9=2Fv)1{D;TODHixt`^eK~j#+bYQKR++U>QL4H;'
        'S_%p`@iPkxSjhGZ=EKhr<%*qD=AQRM71%)^v3~f4`&*N{NMk_{C~~trI7jA{eP3cp}*}>YH@AL+LgmfF;K~T;7p132W#^Ay6dD7!iyU7D!>2$',
    ),
    "GIF": Probe(
        "1",
        "b1d2cb0da8c5d825",
        'M@dFFH(?k66aa$&0Nm+*mFcwRprWRzxlQSn4dZ??vQaINF56tF+&fzOC<@#fC}Bu67E&*S8W<-'
        'U2P^;p000;O6aYX7!vF&a97wRBKmrI85@^7%Ap-'
        '^qB1)8qprS<t2M!q6xKUw203btxd_c0~gNG;`sC1B^rOTEXV`}7RV1Uh=I0ZyBX>z4cl?#FjUC_`W#EBDMCa5S=Cen!mDhik?;G)$8D6=wnV6!'
        '1j0|h)16iJq6$)7%lF4$@IBw7b*gC;1-@ZnR5N?TGDfU|(#zkk1OWZ3k;-'
        'H2A17B+BLfz7=FntmmKv$BGaF()GwSeYz<nH&`o_~;n`$G>6)mJS&Z06P',
    ),
    "BMP": Probe(
        "1",
        "b1d2cb0da8c5d825",
        'LQPfz00000004FX001Ze000;O000yK000312mk;8007_t006`e006`e000mG000mG004gJ+yJ!cl>nlk<^Z{<rT~@cO#pu54FFNHG5{`+EdZ!o'
        '+W=ZS+yDwF`T!^z+yFF4VE`{u762F;ga8K`CjbTp1_cEL1Ox;G0RaI40000000000000IC1_lNN1Ox;G0RaI40RR9100000000LD1_lNO1Ox;G'
        '1OWj70RaF200000000LE1_lNO1_T5I1OWj70RaF200000000LE2L=WP1_lHK1OWj90|NsC00000000OG2nYxW2nYxX3=9km3=9km4+8@Y4Gjke'
        '2L}fR1_lNO1Oo#D0|NsC0|N>G000LE2L}fS1_lNO1_J{F0|NsC0|NsB3JM1Y2L}fS2L=iX3JMAe3JMAX0|Ej90s;pI2L}fS2L}oY3JMAe3JMAX'
        '2nYfK0s;*U2L}fS2L}oY3JMAe3JMAc2nYxW2nY=g4Gj$q3=9ei3JMAe3JMAc2nYxW2nYfK0s;dA0|NyG1qB5K1qB5L1_lNO1_lic4Gj$q3=9ei'
        '3JMAe3JMAd2?+@a2nY=g4Gj$q3=9ei3JMAe3JMAd2?+@a2?-Am4-XFy4-5<p3=9qq4h{(k2?+@a2?-Am4-XFy4-'
        'X6u4h{|u4h{<o3kwSi3keSo4-XFy4-XCw4h{|u4h{|r3kwSi3kweq4-XFy4-'
        'XCw4h{|u4h{|r3kwSi3JL)M0RaI40RaI40RaI40RaI71Ox;G1Ox',
    ),
    "TIFF": Probe(
        "1",
        "b1d2cb0da8c5d825",
        'Nl7XI$N&HUfB;}nI3yMX1cX9BfcRuK7!HU;Vj#GrP!tM>L!wc*tadXE21eo$*r+Bx4+ctQF(6E~T`dO8W>T2E)@?7BOr~JTwDxca1OTW&ARQD2'
        '1*B4GAZlea4LX?3C$m}wR)H}C)@xNdrCNbnumS6la2*1M0<hLV)-Y8T&uFmIfYfWH7zG!&(}0&-peO-'
        '<uT_CEtROHSMVVHvP?#0g|BnD#uUN<?Lm&sm!l1cqeaH)%%I7ci+D?K6qQ}5M3IG5B0{{U4000;O000320{{U4000yK000630{{U4000O80009'
        '40{{U4000F5000I70{{U400093000pI1ONd5000O8000&N0{{U4000yK000*O1ONd5006)M000~T0{{U400031002M%0{{R6002e-'
        '000000002o0F?md0Hy#<01W^#04)I90Neoj0Nem!02Tm*04D$d000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002#0O<gr0H^@z'
        '0OJ6%0FVG&06PFE02%;D08#)N02%-'
        'Q0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000001f0JH$20J#8_0Db^b04@Ni09pVF04M-7051R-'
        '00#g7000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '00000000000000000000000000000000000000000000000000000',
    ),
    "AVIF": Probe(
        "1",
        "9f480d8f7b62cc90",
        '0000WW^{RQVRmU|00000VRmU|ZE0pPZE0a<O+hh20002%ZDn*}000000000XXk=`10000000000aA{+7000000000000000000004sdC7Z2$lO'
        '000310016oY;R)#0000)000310RR910RR926951J#Q*>RC~0YKW&i*H00031000_kZf0cy000000RRADb}%tRZ)|UJ00000YH4tCZ~y=ROKEUp'
        'ZvX%Q6lrsCWdHyG000007ytkO6aWAK5O8UDX#fBK00RgJ2mk;83}JRLLxBJc000006Ju{|a&BX6cmM$a4FCp!0000NX>e^}0000000001009I6'
        '0)qqq007NxWMOm?0162h5id5#2xv4QGPMC0hlhqCfB<E10008du?{51Ok2Mz-%8bAyFNo-d&+fZU$6x?AaDi`i7`!hHvI0t5$xmd>2IY-QMTE)'
        '-kALpcm;P{ppoHtnaFY?w7b==Xh14g-'
        'HicZ*Lu1Fdb)onmwBmRaC!%e;7O3*lks(cG?TJTLPw!cLyGWA5v{EpaTHTNJNFG8^;VFAc|}qU%$ehWH@c9JIQT4RBg8+;^snsAdAtw<whB35*'
        '@XOsgOj7c',
    ),
}
