#!/usr/bin/env bash
# Make the image with vLLM and LiteLLM once and print its name; with --archive, also a `docker save` archive below
# .cache/images, whose path and checksum follow on lines of their own. See testbed/engine_image/README.md.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
say() { printf '   %s\n' "$*" >&2; }
base=$(testbed/image.sh "${MODELHOST_TESTBED_BASE:-}")
recipe=$(cat testbed/engine_image/build.yml testbed/engine_image.sh roles/vllm/files/locks/cpu.txt roles/litellm/files/requirements.txt | sha256sum | cut -c1-12)
name=modelhost-test/engine:${base#*:}-$recipe
if docker image inspect "$name" >/dev/null 2>&1; then
  say "image of the engine: $name (made before)"
else
  say "building $name from the locks of vLLM and LiteLLM (one to three minutes)"
  ansible-playbook -i testbed/engine_image/inventory testbed/engine_image/build.yml \
    -e "engine_image_base=$base" -e "engine_image_name=$name" >&2
fi
echo "$name"
[ "${1:-}" = --archive ] || exit 0
archive=$PWD/.cache/images/${name##*:}.tar
if [ ! -f "$archive.sha256" ]; then
  mkdir -p .cache/images
  say "saving it as $archive"
  docker save --output "$archive.part" "$name"
  find .cache/images -type f ! -name '*.part' -delete
  sha256sum "$archive.part" | cut -d' ' -f1 >"$archive.sha256"
  mv "$archive.part" "$archive"
fi
echo "$archive"
cat "$archive.sha256"
