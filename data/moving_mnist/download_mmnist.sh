#!/usr/bin/env bash
# Fetch Moving MNIST beside this script, from any folder: MNIST's training images, from which training sequences are
# generated, and the 10,000 fixed test sequences (781 MiB). Resumes what was cut off, tries each mirror in turn, checks
# md5 sums, and does nothing where all is there. Needs curl or wget, and md5sum or md5.
#
# MNIST_MIRRORS, MMNIST_MIRRORS: other base addresses, separated by spaces. MNIST_MD5, MMNIST_MD5: their files' sums.
set -u

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
mnist=${MNIST_MIRRORS:-"https://ossci-datasets.s3.amazonaws.com/mnist https://storage.googleapis.com/cvdf-datasets/mnist"}
mmnist=${MMNIST_MIRRORS:-"https://www.cs.toronto.edu/~nitish/unsupervised_video http://www.cs.toronto.edu/~nitish/unsupervised_video"}

md5_of() {
    if command -v md5sum >/dev/null; then md5sum <"$1" | cut -d' ' -f1; else md5 -q "$1"; fi
}

fetch() { # address, file: go on where the file ends
    if command -v curl >/dev/null; then
        curl --fail --location --continue-at - --connect-timeout 20 --retry 2 --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --continue --timeout=20 --tries=2 --output-document="$2" "$1"
    else
        echo "error: neither curl nor wget is installed; install one of them" >&2
        exit 2
    fi
}

get() { # name, md5, mirrors…
    local name=$1 sum=$2 part=$folder/$1.part
    shift 2
    if [ -f "$folder/$name" ] && [ "$(md5_of "$folder/$name")" = "$sum" ]; then
        echo "$name: there already"
        return 0
    fi
    for mirror in "$@"; do
        for attempt in resumed fresh; do # a part that does not add up is thrown away, and fetched once more whole
            echo "$name: from $mirror"
            fetch "${mirror%/}/$name" "$part" && status=0 || status=$?
            if [ -f "$part" ] && [ "$(md5_of "$part")" = "$sum" ]; then
                mv -f "$part" "$folder/$name" && echo "$name: complete"
                return 0
            fi
            # Cut off on the way (curl 18, 28, 56; wget 4): keep the part for the next mirror or the next run. Whole but wrong: throw it away.
            case $status in 4 | 18 | 28 | 56) break ;; esac
            [ -f "$part" ] || break
            echo "$name: what came from $mirror has the wrong md5, thrown away" >&2
            rm -f "$part"
        done
    done
    echo "error: $name could not be fetched from any of: $*; run this script again to go on" >&2
    return 1
}

# The mirrors are lists of words on purpose.
# shellcheck disable=SC2086
get train-images-idx3-ubyte.gz "${MNIST_MD5:-f68b3c2dcbeaaa9fbdd348bbdeb94873}" $mnist || failed=1
# shellcheck disable=SC2086
get mnist_test_seq.npy "${MMNIST_MD5:-be083ec986bfe91a449d63653c411eb2}" $mmnist || failed=1
exit "${failed:-0}"
