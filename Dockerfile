# The command line as a container:
#   docker build --tag plasma-hf .
#   docker run --rm --volume "$PWD:/data" plasma-hf search queries.fasta proteins.fasta --format m8
FROM python:3.11-slim
# pip finds the torch with CUDA; without a GPU give what https://pytorch.org/get-started says for
# CPUs, several GB less: --build-arg TORCH_OPTIONS="--index-url ..."
ARG TORCH_OPTIONS=
RUN pip install --no-cache-dir $TORCH_OPTIONS torch
COPY pyproject.toml README.md LICENSE /source/
COPY hub_cards /source/hub_cards
COPY plasma_hf /source/plasma_hf
RUN pip install --no-cache-dir "/source[fast,search,structures]" \
    # What numba compiles is part of the image, else every run takes half a minute to begin.
    && plasma-hf align MKTAYIAKQRQISFVKSHFSRQ AYIAKQRQLSFVKSHFS \
    && rm -r /source
WORKDIR /data
ENTRYPOINT ["plasma-hf"]
