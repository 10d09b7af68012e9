# Sourced by the download scripts: fetch one file, resuming what was cut off. Needs curl or wget.

fetch() { # address, file: go on where the file ends; 0 where the server has no more to give, else the part is worth keeping
    local code status
    if command -v curl >/dev/null; then
        code=$(curl --fail --location --continue-at - --connect-timeout 20 --retry 2 --write-out '%{http_code}' \
            --output "$2" "$1") && return 0 || status=$?
        [ "$status" = 33 ] || [ "$code" = 416 ] # it cannot go on from there: the file is as long, or longer
    elif command -v wget >/dev/null; then
        wget --continue --timeout=20 --tries=2 --output-document="$2" "$1"
    else
        echo "error: neither curl nor wget is installed; install one of them" >&2
        exit 2
    fi
}

get() { # file, check (a command that gets the file's path), mirrors…: leaves no unchecked file under its final name
    local file=$1 check=$2 name=${1##*/} part=$1.part mirror ended
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
            fetch "${mirror%/}/$name" "$part" && ended=yes || ended=no
            if [ -f "$part" ] && $check "$part"; then
                mv -f "$part" "$file" && echo "$name: complete"
                return 0
            fi
            [ -s "$part" ] || rm -f "$part"
            # Cut off, or never begun: keep the part for the next mirror or the next run. Whole but wrong: away with it.
            [ "$ended" = yes ] && [ -f "$part" ] || break
            echo "$name: what came from $mirror fails its check (md5, or the archive's own sums), thrown away" >&2
            rm -f "$part"
            [ "$resumed" = yes ] || break # the beginning may have been another file's: once more, whole
        done
    done
    echo "error: $name could not be fetched from any of: $*; run this script again to go on" >&2
    return 1
}
