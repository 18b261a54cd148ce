#!/bin/sh
# What a pull request changes, as the Markdown of a comment on stdout.
#
#     sh deploy/ci/comment.sh origin/main > comment.md
#
# Status: 3 where the new model may be worse than tolerated (the section `champion` of params.yaml), 0 otherwise, also
# where there is nothing to compare: then the comment says why.
base=$1
compared=$(tunewright compare "$base" 2>&1)
status=$?

echo "## Tunewright, against \`$base\`"
echo
case $status in
    0) echo "The model is no worse than tolerated." ;;
    3) echo "**The model may be worse than tolerated.**" ;;
    *) echo "The models were not compared." ;;
esac
printf '\n```text\n%s\n```\n' "$compared"
for what in metrics params; do
    changed=$(dvc "$what" diff --md "$base" 2>/dev/null)
    [ -z "$changed" ] || printf '\n### %s\n\n%s\n' "$what" "$changed"
done
[ "$status" -ne 3 ] || exit 3
