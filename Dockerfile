# syntax=docker/dockerfile:1
# An image with nothing but Beeline in it, for amd64 and arm64:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/beeline:VERSION --push .

# Debian 12: `cargo xtask` finds a compiler for the kernel programs there. Builds run on the
# builder's own processor, also those for the other one.
FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
ENV DEBIAN_FRONTEND=noninteractive \
    CARGO_TERM_COLOR=never \
    XDG_CACHE_HOME=/cache \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
# The other processor's C compiler and static C library; the builder's own are there.
RUN case "$(dpkg --print-architecture)" in \
        amd64) other="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
        arm64) other="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
    esac \
    && apt-get update \
    && apt-get install --yes --no-install-recommends $other \
    && rustup target add aarch64-unknown-linux-gnu x86_64-unknown-linux-gnu
WORKDIR /src
COPY . .
ARG TARGETARCH
# The caches hold the crates, the linker for the kernel programs, and what was compiled before.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/cache/beeline,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    case "$TARGETARCH" in \
        amd64) target=x86_64-unknown-linux-gnu ;; \
        arm64) target=aarch64-unknown-linux-gnu ;; \
        *) echo "no image for $TARGETARCH" >&2; exit 1 ;; \
    esac \
    && cargo xtask build --static-for "$target" \
    && install -D "target/$target/release/beeline" /image/usr/local/bin/beeline \
    # By this name it takes kube-proxy's command line.
    && ln -s beeline /image/usr/local/bin/kube-proxy \
    && install -D --mode 644 --target-directory /image/usr/share/doc/beeline LICENSE-*

FROM scratch
COPY --from=build /image/ /
# So that `beeline status` is found by exec, without its folder.
ENV PATH=/usr/local/bin
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="beeline" \
      org.opencontainers.image.description="Sends traffic for Kubernetes Services straight to pods, in the kernel" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENTRYPOINT ["/usr/local/bin/beeline"]
