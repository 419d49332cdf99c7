#!/usr/bin/env bash
# Builds the command dialback, statically linked where the musl target is there, and an image of it where docker is.
#
#   bash examples/docker.sh [TAG]       # default: dialback:latest
#
# DIALBACK_BINARY=FILE takes a binary that is built already. `rustup target add x86_64-unknown-linux-musl` and Debian's
# musl-tools make the static one possible.
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:-dialback:latest}
binary=${DIALBACK_BINARY:-}
target=$(uname -m)-unknown-linux-musl

if [ -z "$binary" ]; then
  if rustc --print target-list | grep -qx "$target" && rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    # ring needs no more than musl-gcc.
    cargo build --release --locked --no-default-features --features cli,ring --bin dialback --target "$target"
    binary=target/$target/release/dialback
  else
    echo "docker.sh: no target $target: the binary needs the C library (rustup target add $target)" >&2
    cargo build --release --locked --features cli --bin dialback
    binary=target/release/dialback
  fi
fi

# What it needs at run time decides what it stands on.
if ldd "$binary" 2>/dev/null | grep -q '=>'; then
  base=gcr.io/distroless/cc-debian12:nonroot
else
  base=scratch
fi
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$binary" "$context/dialback"
"$context/dialback" --version
ls -lh "$binary"

if docker info >/dev/null 2>&1; then
  docker build --build-arg "BASE=$base" --file examples/Dockerfile --tag "$tag" "$context"
  docker run --rm "$tag" --version
else
  echo "docker.sh: docker does not run here, so no image was made (base: $base)" >&2
fi
