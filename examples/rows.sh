# Which row of its table a recipe runs: the word behind the script's name, in T6 two. A recipe says which there are (ROWS,
# in T6 DATA_SETS too) and sources this first. It sets ROW (and SET) and takes them from "$@": the rest is veRL's.

TABLE=$(basename "${BASH_SOURCE[1]}" .sh)

usage() {
    local script=(examples/*/"$TABLE.sh") row set
    printf 'usage: bash %s ROW%s [veRL setting ...]\n' "$script" "${DATA_SETS:+ SET}"
    for row in $ROWS; do
        for set in ${DATA_SETS:-""}; do printf '    bash %s %s\n' "$script" "$row${set:+ $set}"; done
    done
}

pick() { # pick ROW|SET WORD CHOICE...: sets the variable, or says what may be chosen
    local variable=$1 word=$2 choice
    shift 2
    for choice; do
        if [ "$choice" = "$word" ]; then
            printf -v "$variable" %s "$word"
            return
        fi
    done
    case $word in
        -h | --help) usage && exit ;;
        "") word="which ${variable,,}?" ;;
        *) word="there is no ${variable,,} $word" ;;
    esac
    printf '%s: %s\n' "$TABLE" "$word" >&2
    usage >&2
    exit 2
}

TRAINS=1 ROW_ARGS=() SET=
pick ROW "${1:-}" $ROWS eval
shift
if [ "$ROW" = eval ]; then # from examples/eval.sh: MODEL is evaluated with the table's settings, which all rows share
    TRAINS=0 ROW=${ROWS%% *} SET=${DATA_SETS:-} NAME=eval
else
    if [ -n "${DATA_SETS:-}" ]; then
        pick SET "${1:-}" $DATA_SETS
        shift
    fi
    NAME=${TABLE}_$ROW${SET:+_$SET} # of the run's folder
fi
