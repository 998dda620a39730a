# For use on one machine. Build and run:
#   docker build -t audioclip-text .
#   docker run --rm -v "$PWD/.cache:/cache" -v "$PWD/texts:/texts" -v "$PWD/out:/out" audioclip-text embed \
#       --model_path /cache/AudioCLIP-Full-Training.pt --tokenizer_path /cache/bpe_simple_vocab_16e6.txt.gz \
#       --input '/texts/*' --output /out
# The mounted out/ must be writable for the user in the container: 1000, or any other by docker run --user "$(id -u)".
FROM python:3.11-slim

WORKDIR /opt/audioclip-text
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
# Its own layer, so that a change in the project does not bring torch anew. --build-arg PIP_EXTRA_INDEX_URL=... adds
# another index, such as that of torch's CPU builds.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN python -m pip install --no-cache-dir -c constraints.txt torch
COPY model model
COPY pipeline pipeline
RUN python -m pip install --no-cache-dir -c constraints.txt .

# A number, so that no entry in /etc/passwd is needed and --user may give any other; what looks for a name and a home
# finds them here. `fetch` and the words full and partial keep to .cache under the working directory.
ENV USER=audioclip HOME=/tmp
USER 1000
WORKDIR /tmp
ENTRYPOINT ["audioclip-text"]
CMD ["--help"]
