#!/usr/bin/env bash
# Fetch and unpack the KTH actions beside this script, from any folder: six archives of avi files (1.1 GB in all) and
# 00sequences.txt. Resumes what was cut off, checks every archive (its own CRC sums, and the number of videos in it), and
# does nothing where all is there. Needs curl or wget, and unzip.
#
# KTH_MIRRORS: other base addresses, separated by spaces.
set -u

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
. "$folder/../fetch.sh"
mirrors=${KTH_MIRRORS:-"http://www.csc.kth.se/cvap/actions https://www.csc.kth.se/cvap/actions"}
command -v unzip >/dev/null || {
    echo "error: unzip is not installed; install it" >&2
    exit 2
}

whole_archive() { # videos, file
    unzip -tqq "$2" >/dev/null 2>&1 && [ "$(unzip -Z1 "$2" | grep -c '_uncomp\.avi$')" -eq "$1" ]
}

names_videos() { # file
    grep -q '^person25_walking_d4' "$1" && grep -q '^person01_boxing_d1' "$1"
}

# shellcheck disable=SC2086
get "$folder/00sequences.txt" names_videos $mirrors || failed=1
for action in boxing handclapping handwaving jogging running walking; do
    videos=100
    [ "$action" = handclapping ] && videos=99 # one was lost by its authors
    if [ "$(find "$folder/$action" -name 'person*_uncomp.avi' 2>/dev/null | wc -l)" -eq "$videos" ]; then
        echo "$action: unpacked already"
        continue
    fi
    # shellcheck disable=SC2086
    if get "$folder/$action.zip" "whole_archive $videos" $mirrors; then
        # Under another name until all of it is there.
        rm -rf "$folder/$action.partial" && mkdir "$folder/$action.partial" &&
            unzip -qq "$folder/$action.zip" -d "$folder/$action.partial" &&
            rm -rf "${folder:?}/$action" && mv "$folder/$action.partial" "$folder/$action" &&
            rm -f "$folder/$action.zip" && echo "$action: unpacked" || failed=1
    else
        failed=1
    fi
done
exit "${failed:-0}"
