# Sourced by the download scripts: fetch one file, resuming what was cut off. Needs curl or wget.

fetch() { # address, file: go on where the file ends; returns 18, 28, 56 (curl) or 4 (wget) where the network failed
    if command -v curl >/dev/null; then
        curl --fail --location --continue-at - --connect-timeout 20 --retry 2 --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --continue --timeout=20 --tries=2 --output-document="$2" "$1"
    else
        echo "error: neither curl nor wget is installed; install one of them" >&2
        exit 2
    fi
}

get() { # file, check (a command that gets the file's path), mirrors…: leaves no unchecked file under its final name
    local file=$1 check=$2 name=${1##*/} part=$1.part mirror status
    shift 2
    if [ -f "$file" ] && $check "$file"; then
        echo "$name: there already"
        return 0
    fi
    for mirror in "$@"; do
        while :; do
            echo "$name: from $mirror"
            local resumed=no
            [ -s "$part" ] && resumed=yes
            fetch "${mirror%/}/$name" "$part" && status=0 || status=$?
            if [ -f "$part" ] && $check "$part"; then
                mv -f "$part" "$file" && echo "$name: complete"
                return 0
            fi
            # Cut off on the way: keep the part for the next mirror or the next run. Whole but wrong: throw it away.
            case $status in 4 | 18 | 28 | 56) break ;; esac
            [ -f "$part" ] || break
            echo "$name: what came from $mirror fails its check (md5, or the archive's own sums), thrown away" >&2
            rm -f "$part"
            [ "$resumed" = yes ] || break # the beginning may have been another file's: once more, whole
        done
    done
    echo "error: $name could not be fetched from any of: $*; run this script again to go on" >&2
    return 1
}
