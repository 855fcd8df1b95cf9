# Installs what the lab needs on Debian 12, Debian 13 and Ubuntu 24.04. To be sourced by bash from anywhere.
#
#   provision_qemu   the packages: QEMU, network tools, and what the build links with
#   provision_lab    all of that, and a guest kernel unpacked below target/lab/kernel
#   provision_qemu_alt  provision_lab, and a newer QEMU of the distribution's backports below target/lab/qemu-alt, whose
#                    program it puts into VMSCATTER_QEMU_ALT; one that is set already is left alone
#   provision_fuzz   cargo-fuzz, and what libFuzzer is built with
#   provision_debian provision_lab, and a disk image with a small Debian and the workloads of scripts/workloads
#
# Each says nothing and changes nothing if all is there. They install with apt as root, else they name the command to
# run and return 2.

PROVISION_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PROVISION_CACHE=${VMSCATTER_LAB_CACHE:-$PROVISION_ROOT/target/lab}

# One "file-or-command:package" a line. Only qemu-system-x86 is named of QEMU's packages: to name qemu-utils as well
# fails where a newer one of it is installed.
readonly PROVISION_PACKAGES='
qemu-system-x86_64:qemu-system-x86
cc:gcc
/usr/lib/x86_64-linux-gnu/libc.a:libc6-dev
ip:iproute2
tc:iproute2
nft:nftables
mke2fs:e2fsprogs
xz:xz-utils
zstd:zstd'

provision_qemu() { provision_packages "$PROVISION_PACKAGES"; }

provision_lab() { provision_qemu && provision_kernel; }

provision_fuzz() {
  provision_qemu && provision_packages 'c++:g++' || return 2
  command -v cargo-fuzz >/dev/null || cargo install --locked --quiet cargo-fuzz
}

provision_debian() {
  provision_lab && provision_packages '/usr/sbin/debootstrap:debootstrap' && provision_image
}

provision_qemu_alt() {
  provision_lab || return 2
  [ -z "${VMSCATTER_QEMU_ALT-}" ] || return 0
  local alt=$PROVISION_CACHE/qemu-alt work
  if [ ! -e "$alt/complete" ]; then
    mkdir -p "$PROVISION_CACHE" && work=$(mktemp -d "$PROVISION_CACHE/qemu-alt.XXXXXX") || return 2
    if ! provision_qemu_alt_in "$work" >"$work/log" 2>&1; then
      tail -n 5 "$work/log" >&2
      rm -rf "$work"
      echo "provision: no other QEMU: name one with VMSCATTER_QEMU_ALT" >&2
      return 2
    fi
    rm -rf "$alt"
    mv "$work" "$alt"
  fi
  export VMSCATTER_QEMU_ALT=$alt/qemu-system-x86_64
}

# Downloads into a directory, with lists of apt's own there, and unpacks; nothing of it is installed.
provision_qemu_alt_in() {
  local suite mirror
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" | head -n 1)
  [ -n "$mirror" ] || { echo "apt has no lists of $suite; run as root: apt-get update"; return 2; }
  mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/debs" "$1/tree"
  printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$suite-backports" >"$1/sources.list"
  local apt=(apt-get -o "Dir::Etc::sourcelist=$1/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$1/lists"
    -o "Dir::Cache=$1/cache")
  local packages=(qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu)
  "${apt[@]}" update && (cd "$1/debs" && "${apt[@]}" -t "$suite-backports" download "${packages[@]}") || return 2
  local deb
  for deb in "$1"/debs/*.deb; do dpkg-deb -x "$deb" "$1/tree" || return 2; done
  cat >"$1/qemu-system-x86_64" <<'EOF'
#!/bin/sh
tree=$(dirname "$(readlink -f "$0")")/tree
exec "$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" -L "$tree/usr/lib/ipxe/qemu" "$@"
EOF
  chmod +x "$1/qemu-system-x86_64" && rm -rf "$1/lists" "$1/cache" "$1/debs" && "$1/qemu-system-x86_64" --version && touch "$1/complete"
}

provision_has() {
  case "$1" in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
  esac
}

# Installs the packages whose file or command is missing.
provision_packages() {
  local entry package missing=()
  for entry in $1; do
    package=${entry##*:}
    provision_has "${entry%%:*}" || [[ " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  if ! command -v apt-get >/dev/null; then
    echo "provision: missing, and there is no apt here: ${missing[*]}" >&2
    return 2
  elif [ "$(id -u)" != 0 ]; then
    echo "provision: run as root: apt-get update && ${install[*]}" >&2
    return 2
  fi
  echo "provision: installing ${missing[*]}" >&2
  provision_update && DEBIAN_FRONTEND=noninteractive "${install[@]}" </dev/null >&2 || return 2
}

# The lists may be stale, or never fetched. A third-party source that does not answer is no reason to stop.
provision_update() {
  [ -z "${PROVISION_UPDATED-}" ] || return 0
  apt-get update >&2 || echo "provision: apt-get update had errors, going on with the lists there are" >&2
  PROVISION_UPDATED=1
}

# Downloads a cloud kernel and unpacks it; nothing of it is installed.
provision_kernel() {
  local current=$PROVISION_CACHE/kernel/current
  [ ! -e "$current/complete" ] || return 0
  if [ "$(id -u)" = 0 ]; then provision_update; fi
  local packages
  packages=$(provision_kernel_packages)
  if [ -z "$packages" ]; then
    echo "provision: no kernel package for the guests in apt's lists; run as root: apt-get update" >&2
    return 2
  fi
  local work
  mkdir -p "$PROVISION_CACHE/kernel" && work=$(mktemp -d "$PROVISION_CACHE/kernel/new.XXXXXX") || return 2
  echo "provision: downloading" $packages >&2
  if (
    set -e
    cd "$work"
    mkdir debs tree
    # apt's own user can't write here, which apt mentions and goes on.
    (cd debs && apt-get download $packages >/dev/null 2>../errors) || { cat errors >&2; exit 1; }
    for deb in debs/*.deb; do dpkg-deb -x "$deb" tree; done
    # Packages of distributions with a merged /usr have the modules there.
    if [ ! -d tree/lib/modules ] && [ -d tree/usr/lib/modules ]; then ln -s usr/lib tree/lib; fi
    find tree/ -name '*.ko.xz' -exec xz -dq {} +
    find tree/ -name '*.ko.zst' -exec zstd -dq --rm {} +
    compgen -G 'tree/boot/vmlinuz-*' >/dev/null
    touch tree/complete
  ); then
    local name
    name=$(basename "$(compgen -G "$work/tree/boot/vmlinuz-*" | head -n 1)")
    rm -rf "${PROVISION_CACHE:?}/kernel/${name#vmlinuz-}"
    mv "$work/tree" "$PROVISION_CACHE/kernel/${name#vmlinuz-}"
    ln -sfn "${name#vmlinuz-}" "$current"
    rm -rf "$work"
  else
    rm -rf "$work"
    echo "provision: no guest kernel from $packages" >&2
    return 2
  fi
}

# The versioned packages behind the distribution's kernel for virtual machines: image, and modules where they are apart.
provision_kernel_packages() {
  local meta image
  for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-kvm; do
    image=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    [ -n "$image" ] || continue
    echo "$image"
    apt-cache depends "$image" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-modules-[0-9]/ { print $2 }'
    return
  done
}

# What the guests' Debian has beside the packages without which there is none.
readonly PROVISION_GUEST_PACKAGES=gcc,make,libc6-dev,sysbench,sqlite3,bzip2,xz-utils

# Installs the distribution of this machine (also where that is Ubuntu) into a directory, has scripts/workloads/prepare
# fill it, and makes a disk image of it that all guests read. Done again when something in scripts/workloads changes.
provision_image() {
  local suite=${PROVISION_SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME-}")}
  local debian=$PROVISION_CACHE/debian version work components=main
  version=$(cat "$PROVISION_ROOT"/scripts/workloads/* <(echo "$suite" "$PROVISION_GUEST_PACKAGES") | sha256sum | head -c 16)
  [ ! -e "$debian/$version/complete" ] || { ln -sfn "$version" "$debian/current"; return 0; }
  if [ "$(id -u)" != 0 ]; then
    echo "provision: to install a Debian for the guests, run as root" >&2
    return 2
  fi
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 2>/dev/null | head -n 1)
  if [ -z "$mirror" ]; then
    echo "provision: apt has no lists of $suite; run as root: apt-get update" >&2
    return 2
  fi
  case "$mirror" in *ubuntu*) components=main,universe ;; esac
  mkdir -p "$debian" && work=$(mktemp -d "$debian/new.XXXXXX") || return 2
  echo "provision: installing $suite for the guests and preparing their workloads (some minutes, 3 GB)" >&2
  if provision_image_in "$work" >"$debian/log" 2>&1 </dev/null; then
    # Older ones go; guests that have one open keep it.
    find "${debian:?}" -mindepth 1 -maxdepth 1 -type d ! -path "$work" -exec rm -rf {} +
    rm -rf "$work/root"
    mv "$work" "$debian/$version"
    ln -sfn "$version" "$debian/current"
  else
    rm -rf "$work"
    tail -n 20 "$debian/log" >&2
    echo "provision: no Debian for the guests; all of it: $debian/log" >&2
    return 2
  fi
}

# For provision_image, with its variables.
provision_image_in() {
  local root=$1/root
  # Not by `set -e`, which is void in a condition.
  debootstrap --variant=minbase "--components=$components" "--include=$PROVISION_GUEST_PACKAGES" "$suite" "$root" "$mirror" &&
    mkdir -p "$root/lab/run" &&
    cp "$PROVISION_ROOT"/scripts/workloads/* "$root/lab/run" &&
    chroot "$root" /lab/run/prepare &&
    # Room for inodes and for files that end within a block. The image is sparse.
    truncate -s $(($(du -sm "$root" | cut -f 1) * 5 / 4 + 64))M "$1/disk.img" &&
    mke2fs -q -F -t ext4 -O ^has_journal,^metadata_csum -b 4096 -d "$root" "$1/disk.img" &&
    touch "$1/complete"
}
