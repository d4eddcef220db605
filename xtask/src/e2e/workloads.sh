# Real work in a directory, in bash; xtask/src/e2e/workloads.rs says who runs which part where.
#
#   prepare                makes in $KEEP what the other parts start from
#   trees DIR              a build, a repository and a database in DIR: the same bytes every time
#   sums DIR               lists what `trees` left there, with modes and SHA-256
#   torture DIR            fsx, a removed file and pjdfstest in DIR
#
# $KEEP is where the inputs lie, fsx and pjdfstest among them in the guest, $WHO stands before each
# step's line, $SOURCES holds the versions of Lua, $SEED is for fsx.
set -euo pipefail
umask 022
SECONDS=${STARTED:-0}
# Nothing from the person who runs the tests may get into the trees.
export HOME=$KEEP/home GIT_CONFIG_NOSYSTEM=1 LC_ALL=C TZ=UTC
export GIT_AUTHOR_DATE=2001-02-03T04:05:06Z GIT_COMMITTER_DATE=2001-02-03T04:05:06Z

step() { echo "$WHO, $SECONDS s: $*"; }

prepare() {
  mkdir -p "$HOME" "$KEEP/project"
  git config --global user.name One
  git config --global user.email one@example.org
  git config --global init.defaultBranch main
  git config --global safe.directory '*'
  # Packs are the same bytes every time only if one thread makes them, and nobody repacks behind us.
  git config --global pack.threads 1
  git config --global gc.auto 0
  # fsck of a commit graph shows its progress whatever one says.
  git config --global gc.writeCommitGraph false
  # Four of the five are 228 files, 126 of them to compile: enough, and a minute less to wait.
  cp -r "$SOURCES"/lua-5.[1345]* "$KEEP/project/"
  cat > "$KEEP/project/main.c" <<'END'
#include <stdio.h>
#include "lua.h"
#include "lauxlib.h"
#include "lualib.h"

int main(int argc, char **argv)
{
    lua_State *state = luaL_newstate();
    if (argc != 2 || state == NULL)
        return 2;
    luaL_openlibs(state);
    if (luaL_loadfile(state, argv[1]) != 0 || lua_pcall(state, 0, 0, 0) != 0) {
        fprintf(stderr, "%s\n", lua_tostring(state, -1));
        return 1;
    }
    lua_close(state);
    return 0;
}
END
  cat > "$KEEP/project/Makefile" <<'END'
CC = tcc
versions := $(wildcard lua-*)
all: $(versions:=/lua)
.SECONDARY:
.SECONDEXPANSION:
%.o: %.c ; $(CC) -c -DLUA_USE_POSIX -o $@ $<
lua-%/liblua.a: $$(addsuffix .o,$$(basename $$(wildcard lua-$$*/*.c))) ; ar rcD $@ $^
lua-%/lua: lua-%/liblua.a main.c ; $(CC) -Ilua-$* -o $@ main.c $< -lm
END
  cat > "$KEEP/project/check.lua" <<'END'
local numbers, seed = {}, 1
for i = 1, 2000 do
  seed = (seed * 16807) % 2147483647
  numbers[i] = seed
end
table.sort(numbers)
for i = 1, #numbers do print(string.format("%10d", numbers[i])) end
local lines = 0
for line in io.lines("Makefile") do lines = lines + #line end
print(lines)
END
  # The system's headers that it includes, in one directory: tcc looks for each in five, and a guest
  # that has its root file system over 9p pays for every miss.
  mkdir "$KEEP/include"
  for file in "$KEEP"/project/lua-*/*.c; do
    tcc -vv -c -DLUA_USE_POSIX -o "$KEEP/scratch" "$file" 2> /dev/null
  done | sed -n 's/^->  *//p' | sort -u > "$KEEP/headers"
  tcc -print-search-dirs | sed -n '/^include:/,/^libraries:/s/^  *//p' | while read -r directory; do
    [ -d "$directory" ] || continue
    cd "$directory"
    sed -n "s!^$directory/!!p" "$KEEP/headers" | xargs -r cp --parents -t "$KEEP/include"
  done
  tar -cf "$KEEP/project.tar" -C "$KEEP/project" .
  # NFSv3 can neither reserve space nor punch holes; everything else that fsx knows.
  cat > "$KEEP/fsx.toml" <<'END'
[weights]
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 10
close_open = 2
invalidate = 2
fsync = 2
fdatasync = 2
sendfile = 2
# Lets the client forget pages, so that they are read from the server again.
posix_fadvise = 10
copy_file_range = 2
END
  # One commit for each version, so that the history holds changed, new and vanished files.
  git init -q "$KEEP/repository"
  (
    cd "$KEEP/repository"
    for version in "$KEEP"/project/lua-*; do
      rm -rf lua
      cp -r "$version" lua
      git add -A
      git commit -q -m "${version##*/}"
    done
    git repack -q -a -d
  )
  rm -r "$KEEP/project"
}

# Unpacks and builds a hundred and more C files, runs what came out.
build() {
  mkdir "$1"
  tar -xf "$KEEP/project.tar" --no-same-owner -C "$1"
  cd "$1"
  make -s -j2 CC="tcc -nostdinc -I$KEEP/include"
  for lua in lua-*/lua; do "$lua" check.lua > "$lua.out"; done
  [ "$(sha256sum lua-*/lua.out | cut -d ' ' -f 1 | sort -u | wc -l)" = 1 ]
}

# Clones over git's own protocol, goes through the history, commits, merges, packs.
repository() {
  # Under a name that is the same everywhere, since git notes where it cloned from.
  git -c "url.$KEEP/.insteadOf=inputs:" clone -q inputs:repository "$1"
  cd "$1"
  git fsck --strict --no-progress
  for commit in $(git rev-list --reverse main); do git checkout -q "$commit"; done
  git checkout -q -b side main~2
  for file in lua/*.h; do echo "/* side */" >> "$file"; done
  git mv lua/lua.h lua/moved.h
  git commit -q -a -m side
  git checkout -q main
  git merge -q -s ours -m merged side
  git gc -q
  git fsck --strict --no-progress
  [ -z "$(git status --porcelain)" ]
}

# Many small transactions, each with its journal and its flushes.
database() {
  mkdir "$1"
  cd "$1"
  {
    echo 'PRAGMA synchronous = FULL;'
    echo 'CREATE TABLE entry (id INTEGER PRIMARY KEY, name TEXT UNIQUE, body TEXT);'
    for mode in DELETE TRUNCATE PERSIST; do
      echo "PRAGMA journal_mode = $mode;"
      for i in $(seq 1 60); do
        echo "INSERT INTO entry (name, body) VALUES ('$mode $i', hex(zeroblob($((i * 20)))));"
        echo "BEGIN; UPDATE entry SET body = substr(hex(name) || body, 1, 3000) WHERE id % 7 = $((i % 7));"
        if [ $((i % 5)) = 0 ]; then echo 'ROLLBACK;'; else echo 'COMMIT;'; fi
        if [ $((i % 6)) = 0 ]; then echo "DELETE FROM entry WHERE id % 11 = $((i % 11));"; fi
      done
    done
  } | sqlite3 -bail store.db > modes
  sqlite3 -bail store.db 'VACUUM; PRAGMA integrity_check;' > verdict
  [ "$(cat verdict)" = ok ]
}

trees() {
  for part in build repository database; do
    step "$part"
    ("$part" "$1/$part")
  done
}

# The index of a repository holds inode numbers and times, which are no part of what is kept.
sums() {
  cd "$1"
  find build repository database -printf '%y %m %p\n' | sort
  find build repository database -type f ! -path repository/.git/index -print0 |
    sort -z | xargs -0 sha256sum
}

# pjdfstest in DIR, with remounts allowed or not; the cases of PATTERN or all. None may be skipped but
# for a REASON, and those that the list names.
#   cases DIR true|false REASON LIST [PATTERN]
cases() {
  rules=/tmp/rules-$WHO log=/tmp/cases-$WHO
  sed "s/^allow_remount = .*/allow_remount = $2/" "$KEEP/pjdfstest.toml" > "$rules"
  if ! "$KEEP/pjdfstest" -c "$rules" -p "$1" -s /tmp ${5:+"$5"} > "$log" 2>&1; then
    grep -A 2 -E 'FAILED|UNEXPECTEDLY' "$log" || tail "$log"
    exit 1
  fi
  # A case's name is followed by the reasons, one to a line that begins with a tab.
  awk -v known="$3" '
    / skipped$/ { name = $1; next }
    !/^\t/ { name = "" }
    name != "" && $0 !~ known { print name }
  ' "$log" | sort | diff "$4" -
  step "$(grep '^Summary' "$log")"
}

# Writes and reads a file that no name leads to any more, in DIR, and sees that nothing stays behind.
removed() {
  mkdir "$1"
  exec {file}<> "$1/file"
  rm "$1/file"
  echo still here >&$file
  [ "$(cat "/proc/self/fd/$file")" = 'still here' ]
  exec {file}>&-
  # The client removes its hidden name after the close, without anybody waiting.
  for _ in $(seq 1 300); do
    [ -n "$(ls -A "$1")" ] || return 0
    sleep 0.2
  done
  ls -A "$1"
  return 1
}

torture() {
  mkdir "$1/fsx" "$1/pjdfstest"
  step fsx, 10,000 operations
  "$KEEP/fsx" -q -N 10000 -S "$SEED" -f "$KEEP/fsx.toml" -P "$1/fsx" "$1/fsx/file"
  step a file removed while it is open
  removed "$1/removed"
  step pjdfstest
  if [ "$WHO" = root ]; then
    cases "$1/pjdfstest" false Remounts "$KEEP/skipped"
    # These want that no file is open anywhere, and other cases leave some open.
    cases "$1/pjdfstest" true 'no excuse' /dev/null erofs
  else
    cases "$1/pjdfstest" false 'requires root privileges|CAP_SYS_ADMIN|Remounts' "$KEEP/skipped"
  fi
}

"$@"
