# Writes its process id, as the tests see it, to a file, then becomes the command:
# program.sh FILE COMMAND...
set -eu
file=$1
shift
# $$ is the number in this pid namespace. This /proc is the one that the tests have.
read -r pid rest </proc/self/stat
echo "$pid" >"$file.new"
mv "$file.new" "$file"
exec "$@"
