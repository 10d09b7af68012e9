#!/usr/bin/env bash
# Fetch Moving MNIST beside this script, from any folder: MNIST's training images, from which training sequences are
# generated, and the 10,000 fixed test sequences (781 MiB). Resumes what was cut off, tries each mirror in turn, checks
# md5 sums, and does nothing where all is there. Where the test sequences cannot be had, fetches what make_test_set.py
# makes others of. Needs curl or wget, and md5sum or md5.
#
# MNIST_MIRRORS, MMNIST_MIRRORS: other base addresses, separated by spaces. MNIST_MD5, T10K_MD5, MMNIST_MD5: the sums of
# their files.
set -u

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
. "$folder/../fetch.sh"
mnist=${MNIST_MIRRORS:-"https://ossci-datasets.s3.amazonaws.com/mnist https://storage.googleapis.com/cvdf-datasets/mnist"}
mmnist=${MMNIST_MIRRORS:-"https://www.cs.toronto.edu/~nitish/unsupervised_video http://www.cs.toronto.edu/~nitish/unsupervised_video"}

has_md5() { # sum, file
    local found
    if command -v md5sum >/dev/null; then found=$(md5sum <"$2" | cut -d' ' -f1); else found=$(md5 -q "$2"); fi
    [ "$found" = "$1" ]
}

# The mirrors, and the check with its argument, are lists of words on purpose.
# shellcheck disable=SC2086
get "$folder/train-images-idx3-ubyte.gz" "has_md5 ${MNIST_MD5:-f68b3c2dcbeaaa9fbdd348bbdeb94873}" $mnist || failed=1
# shellcheck disable=SC2086
if ! get "$folder/mnist_test_seq.npy" "has_md5 ${MMNIST_MD5:-be083ec986bfe91a449d63653c411eb2}" $mmnist; then
    failed=1
    get "$folder/t10k-images-idx3-ubyte.gz" "has_md5 ${T10K_MD5:-9fb629c4189551a2d022fa330f9573f3}" $mnist &&
        echo "or make a test set, which is not the published one: python $folder/make_test_set.py" >&2
fi
exit "${failed:-0}"
