#!/usr/bin/env bash
# Makes sure that the Debian packages which the build and the tests need are there. Root installs what is missing and
# prints it; anybody else is told, and goes on without what is optional.
set -euo pipefail

missing=()
need() { # need PROBE PACKAGE
	eval "$1" >/dev/null 2>&1 || missing+=("$2")
}
need 'command -v gcc' gcc
need 'test -e /usr/include/stdlib.h' libc6-dev
need 'command -v pkg-config' pkg-config
need 'pkg-config --exists libseccomp' libseccomp-dev
need 'command -v dig' bind9-dnsutils # tests ask by it

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing packages: ${missing[*]} (install them as root: apt-get install ${missing[*]})" >&2
	command -v gcc >/dev/null && [ -e /usr/include/stdlib.h ] && exit 0 # libseccomp only narrows what containers may call
	exit 1
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
