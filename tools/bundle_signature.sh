#!/usr/bin/env bash
# bundle_signature.sh KEY FOLDER: is a bundle's SHA256SUMS signed by the key in the file KEY (a public key)?
# Needs nothing but gpg. ./run asks it before anything of the bundle runs, validation before anything is installed.
set -euo pipefail
export LC_ALL=C.UTF-8
key=${1:?the file with the public key} folder=${2:?the folder of the bundle}

refuse() {
  printf '%s\n' "$1" >&2
  exit 1
}
command -v gpg >/dev/null || refuse "its signature cannot be checked: this machine has no gpg; install it from your distribution"
[ -f "$key" ] || refuse "there is no file $key with the public key"
for name in SHA256SUMS SHA256SUMS.asc; do
  [ -f "$folder/$name" ] || refuse "it holds no $name, so nothing says that it was signed"
done

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
gpg=(gpg --homedir "$home" --batch --no-autostart --no-auto-key-retrieve --status-fd 3)
"${gpg[@]}" --import "$key" 3>/dev/null 2>"$home/said" || refuse "gpg cannot read the key in $key: $(tail -n 1 "$home/said")"
code=0
"${gpg[@]}" --verify "$folder/SHA256SUMS.asc" "$folder/SHA256SUMS" 3>"$home/status" 2>"$home/said" || code=$?

# gpg calls the signatures of expired and revoked keys valid (VALIDSIG, status 0); only GOODSIG is none of these. Of
# several signatures each one counts.
tells() { grep -qE "^\[GNUPG:\] ($1)( |\$)" "$home/status"; }
bad="SHA256SUMS is not signed by the key in $key"
if tells REVKEYSIG; then refuse "$bad: its owner has revoked that key"; fi
if tells EXPKEYSIG; then refuse "$bad: that key has expired"; fi
if tells EXPSIG; then refuse "$bad: the signature has expired"; fi
if [ "$code" != 0 ] || tells 'BADSIG|ERRSIG|NO_PUBKEY' || ! tells GOODSIG || ! tells VALIDSIG; then
  refuse "$bad: $(tail -n 1 "$home/said")"
fi
