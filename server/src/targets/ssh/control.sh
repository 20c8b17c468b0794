#!/bin/sh
# Glasskey's work on this host: fences a lease, ends what its sessions left running, answers what is left, and tells who can
# do what. Runs as root. Takes one request, as one argument or as SSH_ORIGINAL_COMMAND, of plain words; nothing in it is ever
# evaluated. Either it is sent for each request by `sh -s`, or it is installed as /usr/local/lib/glasskey/control and forced
# upon the control login; then this host's administrator decides what it does.
#
# What is read here of other processes and files was written by people who may wish Glasskey ill: it is counted, compared,
# hashed, or stripped of everything but plain characters before it is printed.
set -fu
PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
export PATH LC_ALL
umask 077
unset IFS ENV CDPATH 2>/dev/null || :

VERSION=1
NEWLINE='
'
BLIND='processes cannot be looked into here, so nothing about them is known: all of them, and CAP_SYS_PTRACE, are needed'
ID='[0-9a-hjkmnp-tv-z]'

die() {
  printf 'error %s\n' "$1"
  exit 1
}

# ---------------------------------------------------------------------------------------------------------- processes

# Processes with the mark $1 in the environment they were started with. Fails unless every process could be looked into, but
# for process 1: "none" must never mean "not seen". The last that is looked into is the one that looks, which must be found.
marked() {
  set +f
  looked=$(printf '%s\n' /proc/[0-9]*/environ /proc/self/environ |
    GLASSKEY_LOOKS="$$." xargs grep -lF -e "LC_GLASSKEY=$1" -e "GLASSKEY_LOOKS=$$." 2>&1)
  set -f
  pids= all=
  IFS=$NEWLINE
  for line in $looked; do
    case $line in
      /proc/self/environ) all=yes ;;
      /proc/*/environ) line=${line#/proc/} && pids="$pids${line%/environ}$NEWLINE" ;;
      *' No such file or directory' | *' No such process' | *'/proc/1/environ: Permission denied') ;;
      *) all=no && break ;;
    esac
  done
  unset IFS
  [ "$all" = yes ] || return 1
  printf %s "$pids"
}

# `PID PPID STATE` of every process, and `all` at the end. The kernel escapes line ends in names, so no name can pass for a line.
processes() {
  set +f
  printf '%s\n' /proc/[0-9]*/status /proc/self/status | xargs grep -sE '^(State|PPid):' |
    sed -n -e 's,^/proc/\([0-9]*\)/status:State:[[:space:]]*\(.\).*$,\1 S \2,p' \
      -e 's,^/proc/\([0-9]*\)/status:PPid:[[:space:]]*\([0-9]*\)$,\1 P \2,p' \
      -e 's,^/proc/self/status:PPid:.*$,all,p' |
    awk '$2 == "S" { state[$1] = $3 } $2 == "P" { print $1, $3, state[$1] } $1 == "all"'
  set -f
}

# This script's own process and everything above it: never touched, whatever is marked.
own() {
  pid=$$ depth=0
  while [ "${pid:-0}" -gt 0 ] && [ "$depth" -lt 64 ]; do
    printf '%s ' "$pid"
    pid=$(sed -n 's/^PPid:[[:space:]]*\([0-9]*\)$/\1/p' "/proc/$pid/status" 2>/dev/null)
    [ -n "$pid" ] || return 1
    depth=$((depth + 1))
  done
}

# Everything of lease $1: what bears its mark, the process of sshd that started it, and all that descends from these.
# Without zombies, process 1, this script's own line of ancestors, and what it runs itself. An ancestor hands nothing down:
# where a session started the sshd that listens, it bears the mark, and everybody's logins descend from it.
ofLease() {
  roots=$(marked "$1") || return 1
  [ -n "$roots" ] || return 0
  table=$(processes)
  case $table in *"${NEWLINE}all") ;; *) return 1 ;; esac
  above=$(own) || return 1
  doors=
  for parent in $(printf '%s\n' "$table" | awk -v roots="$(echo $roots)" '
      BEGIN { n = split(roots, r, " "); for (i = 1; i <= n; i++) want[r[i]] = 1 }
      want[$1] && $2 > 1 { print $2 }' | sort -u); do
    case $(readlink "/proc/$parent/exe" 2>/dev/null) in
      */sshd | */sshd-session | */sshd\ \(deleted\) | */sshd-session\ \(deleted\)) doors="$doors $parent" ;;
    esac
  done
  printf '%s\n' "$table" | awk -v roots="$(echo $roots $doors)" -v own="$above" -v self="$$" '
    BEGIN {
      n = split(roots, r, " "); for (i = 1; i <= n; i++) mine[r[i]] = 1
      n = split(own, o, " "); for (i = 1; i <= n; i++) spare[o[i]] = 1
      spare[1] = 1
      for (p in spare) delete mine[p]
    }
    { parent[$1] = $2; state[$1] = $3 }
    END {
      do {
        grew = 0
        for (p in parent) if (!(p in spare) && (parent[p] == self || (parent[p] in helper))) { spare[p] = helper[p] = 1; grew = 1 }
      } while (grew)
      do {
        grew = 0
        for (p in parent) if (!(p in mine) && (parent[p] in mine) && !(p in spare)) { mine[p] = 1; grew = 1 }
      } while (grew)
      for (p in mine) if ((p in parent) && !(p in spare) && state[p] != "Z" && state[p] != "X") print p
    }'
}

# Kills until nothing of lease $1 is left. First all are stopped, so that nothing forks away meanwhile and no number is
# taken by another process between the look and the kill.
endLease() {
  round=0
  while [ "$round" -lt 12 ]; do
    found=$(ofLease "$1") || die "$BLIND"
    [ -n "$found" ] || return 0
    stopped=' '
    freeze=0
    while [ "$freeze" -lt 8 ]; do
      fresh=
      for pid in $found; do
        case $stopped in *" $pid "*) ;; *) fresh="$fresh $pid" ;; esac
      done
      [ -n "$fresh" ] || break
      kill -STOP $fresh 2>/dev/null
      stopped="$stopped${fresh# } "
      found=$(ofLease "$1") || die "$BLIND"
      freeze=$((freeze + 1))
    done
    for pid in $stopped; do
      case " $(echo $found) " in *" $pid "*) ;; *) kill -CONT "$pid" 2>/dev/null ;; esac
    done
    [ -z "$found" ] || kill -KILL $found 2>/dev/null
    if [ "$round" -gt 0 ]; then sleep 0.2 2>/dev/null || sleep 1; fi
    round=$((round + 1))
  done
}

left() {
  found=$(ofLease "$1") || die "$BLIND"
  for pid in $(printf '%s\n' "$found" | sort -n | head -n 20); do
    name=$(tr -cd 'A-Za-z0-9_.-' <"/proc/$pid/comm" 2>/dev/null)
    printf 'left %s %s\n' "$pid" "${name:-unknown}"
  done
}

# ----------------------------------------------------------------------------------------------------- revoked key ids

# Whether root alone decides what is in the folder of $1 and in what it is in: otherwise somebody could put a link there, and
# have root write where that leads.
rootsOwn() {
  folder=$(cd "${1%/*}/" 2>/dev/null && pwd -P) || return 1
  while :; do
    set -- $(ls -ldn "$folder/" 2>/dev/null)
    [ "${3:-}" = 0 ] || return 1
    case $1 in ?????w????* | ????????w?*) case $1 in ?????????[tT]*) ;; *) return 1 ;; esac ;; esac
    [ -n "$folder" ] && [ "$folder" != / ] || return 0
    folder=${folder%/*}
  done
}

# One at a time, also between installations of Glasskey: the lock goes with this process.
lock() {
  exec 9>>"$1.lock" || die "cannot write $1.lock"
  flock -w 10 9 2>/dev/null || flock -n 9 2>/dev/null || die "the lock on $1 is held, or there is no flock here"
}

# Adds key id $1 to the file $2 for the authority $3 $4. Entries go a day after they were last asked for: by then the
# certificates, which are valid for a minute, are long gone. What an administrator had in the file before is kept (.base).
fence() {
  [ -f "$2" ] || die "there is no file $2"
  rootsOwn "$2" || die "somebody else than root can write where $2 is"
  lock "$2"
  work=$(mktemp -d "$2.XXXXXX") || die "cannot write beside $2"
  trap 'rm -rf "$work"' EXIT
  if [ ! -f "$2.list" ] && [ -s "$2" ] && [ ! -f "$2.base" ]; then cp "$2" "$2.base" || die "cannot write $2.base"; fi
  now=$(date +%s)
  {
    [ ! -f "$2.list" ] || awk -v name="$1" -v since="$((now - 86400))" 'NF == 4 && $1 != name && $2 > since' "$2.list"
    printf '%s %s %s %s\n' "$1" "$now" "$3" "$4"
  } >"$work/list" || die "cannot write $work"
  update=
  if [ -f "$2.base" ]; then
    if [ "$(head -c 6 "$2.base" | tr -cd A-Z)" = SSHKRL ]; then
      cp "$2.base" "$work/krl"
    else
      ssh-keygen -q -k -f "$work/krl" "$2.base" || die "ssh-keygen does not take $2.base"
    fi
    update=-u
  fi
  awk '{ print $3, $4 }' "$work/list" | sort -u >"$work/authorities"
  while read -r type key; do
    printf '%s %s\n' "$type" "$key" >"$work/ca"
    awk -v key="$key" '$4 == key { print "id: " $1 }' "$work/list" >"$work/ids"
    ssh-keygen -q -k $update -s "$work/ca" -f "$work/krl" "$work/ids" || die "ssh-keygen could not write the list"
    update=-u
  done <"$work/authorities"
  chmod 644 "$work/krl" && mv -f "$work/list" "$2.list" && mv -f "$work/krl" "$2" || die "cannot write $2"
  exec 9>&- # nobody's fence waits until this lease's processes have ended
}

# Whether the file $1 has the certificate $2 $3 revoked.
revoked() {
  work=$(mktemp -d) || die "cannot write to the temporary folder"
  trap 'rm -rf "$work"' EXIT
  printf '%s %s\n' "$2" "$3" >"$work/cert.pub"
  if [ -f "$1" ] && ! ssh-keygen -Q -f "$1" "$work/cert.pub" >"$work/said" 2>&1 && grep -q REVOKED "$work/said"; then
    echo "revoked yes"
  else
    echo "revoked no"
  fi
}

# ---------------------------------------------------------------------------------------------------------- questions

hello() {
  printf 'uid %s\n' "$(id -u)"
  set -- "$1" ${SSH_CONNECTION:-}
  printf 'client %s\n' "${2:-unknown}"
  for tool in awk grep sed xargs flock ssh-keygen mktemp sha256sum; do
    command -v "$tool" >/dev/null 2>&1 || printf 'missing %s\n' "$tool"
  done
  marked none >/dev/null || echo 'missing CAP_SYS_PTRACE, to look into all processes'
  if [ "$1" != - ]; then
    if id -u "$1" >/dev/null 2>&1; then echo 'user yes'; else echo 'user no'; fi
  fi
}

# Leases of installation $1 that something on this host bears the mark of.
list() {
  found=$(marked "gk_$1_") || die "$BLIND"
  files=$(printf '%s\n' "$found" | head -n 2000 | sed -n 's,..*,/proc/&/environ,p')
  [ -n "$files" ] || return 0
  cat $files 2>/dev/null | tr '\000' '\n' | grep -E "^LC_GLASSKEY=gk_$1_$ID{12}\$" | sort -u | head -n 200 |
    sed 's/^LC_GLASSKEY=/lease /'
}

# One fact per line: `fact TEXT`. Anything that people write freely is a hash; of names, what is not plain becomes `?`.
plain() {
  tr -c 'A-Za-z0-9_ .,:;/@%+=*?!<>()~#\n-' '?' | cut -c1-400
}

# A name in one line, whatever it holds.
shown() {
  printf %s "$1" | tr '\n' '?' | plain
}

hashed() {
  [ ! -L "$1" ] || printf 'fact link %s -> %s\n' "$(shown "$1")" "$(shown "$(readlink "$1" 2>/dev/null)")"
  if [ -f "$1" ]; then
    sum=$(head -c 16777216 "$1" 2>/dev/null | sha256sum | cut -c1-16)
    printf 'fact file %s mode %s sha256 %s\n' "$(shown "$1")" "$(stat -L -c '%a %U:%G' "$1" 2>/dev/null)" "$sum"
  elif [ ! -e "$1" ]; then
    printf 'fact file %s absent\n' "$(shown "$1")"
  fi
}

within() {
  if command -v timeout >/dev/null 2>&1; then timeout "$@"; else shift && "$@"; fi
}

users() {
  awk -F: 'NF >= 7 { print "user " $1 " uid " $3 " gid " $4 " home " $6 " shell " $7 }' /etc/passwd
  awk -F: 'NF >= 4 && $4 != "" { print "group " $1 " gid " $3 " members " $4 }' /etc/group
  # Of passwords only whether there is one: the hash stays here.
  awk -F: '{ print "password " $1 " " ($2 ~ /^[!*]/ ? "none" : $2 == "" ? "EMPTY" : "set") }' /etc/shadow 2>/dev/null
}

keys() {
  awk -F: 'NF >= 7 { print $1 " " $6 }' /etc/passwd | head -n 2000 | while read -r user home; do
    for file in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
      [ -f "$file" ] || continue
      ssh-keygen -lf "$file" 2>/dev/null | awk -v u="$user" '{ print "authorised key of " u ": " $2 " " $NF }' | head -n 200
      printf 'authorised keys of %s: %s\n' "$user" "$(head -c 1048576 "$file" | sha256sum | cut -c1-16)"
    done
  done
}

fingerprint() {
  { users && keys; } | plain | sed 's/^/fact /'
  set +f
  for file in /etc/sudoers /etc/sudoers.d/* /etc/crontab /etc/cron.d/* /var/spool/cron/crontabs/* /var/spool/cron/* \
    /etc/ssh/sshd_config /etc/ssh/sshd_config.d/* /etc/ssh/authorized_principals /etc/pam.d/sshd /etc/pam.d/sudo \
    /etc/ld.so.preload /etc/rc.local /etc/systemd/system/*.service /etc/systemd/system/*.timer /etc/doas.conf; do
    if [ -f "$file" ]; then hashed "$file"; fi
  done
  set -f
  within 3 sshd -T 2>/dev/null | grep -E '^(permitrootlogin|passwordauthentication|pubkeyauthentication|kbdinteractiveauthentication|authorizedkeysfile|authorizedkeyscommand|authorizedprincipals(file|command)|trustedusercakeys|revokedkeys|permitemptypasswords|permituserenvironment|allowusers|allowgroups|denyusers|denygroups|forcecommand|acceptenv|subsystem|hostbasedauthentication|gatewayports|allowtcpforwarding|allowagentforwarding|permittunnel|usepam) ' |
    sort | plain | sed 's/^/fact sshd /'
  if [ -d /run/systemd/system ]; then
    within 3 systemctl list-unit-files --no-legend --no-pager --state=enabled,enabled-runtime,masked 2>/dev/null |
      awk '{ print "unit " $1 " " $2 }' | sort | head -n 2000 | plain | sed 's/^/fact /'
  fi
  within 3 find /bin /sbin /usr/bin /usr/sbin /usr/local/bin /usr/local/sbin /usr/lib /usr/libexec /opt /tmp /var/tmp /dev/shm /home /root \
    -xdev -maxdepth 4 -type f \( -perm -4000 -o -perm -2000 \) -exec stat -c 'setuid %n mode %a %U:%G' {} + 2>/dev/null |
    sort -u | head -n 500 | plain | sed 's/^/fact /'
  for file in "$@"; do hashed "$file"; done
}

# --------------------------------------------------------------------------------------------------------------- main

isLease() {
  printf %s "$1" | grep -qxE "gk_$ID{6}_$ID{12}"
}

# A list of revoked keys, by its name: whoever has the control login can have no other file written here.
isList() {
  case $1 in */../* | */..) return 1 ;; /*) ;; *) return 1 ;; esac
  case ${1##*/} in *revoked* | *krl*) return 0 ;; *) return 1 ;; esac
}

main() {
  printf 'glasskey-control %s\nnow %s\n' "$VERSION" "$(date +%s)"
  request=${1:-${SSH_ORIGINAL_COMMAND:-}}
  [ -z "${2:-}" ] || SSH_CONNECTION=$2
  request=${request#"sh -s -- '"}
  request=${request%"'"}
  [ "$(printf %s "$request" | wc -c)" -le 16384 ] || die 'the request is too long'
  case $request in *[!A-Za-z0-9_/.:,@%+=\ -]*) die 'the request has characters that none has' ;; esac
  set -- $request
  [ "${1:-}" = glasskey-control ] || die 'this login is for Glasskey alone'
  [ "${2:-}" = "$VERSION" ] || die "the control script on this host is of version $VERSION: install the one of this Glasskey"
  verb=${3:-}
  shift 3 2>/dev/null || die 'no verb'
  case $verb in
    fence | revoke | confirm) isLease "${1:-}" || die 'this is no lease' ;;
  esac
  case $verb in
    hello) [ "$#" -eq 1 ] || die 'one user' && hello "$1" ;;
    fence) [ "$#" -eq 4 ] && isList "$2" || die 'a lease, a path and an authority' && fence "$@" ;;
    revoke)
      [ "$#" -eq 4 ] && isList "$2" || die 'a lease, a path and an authority'
      fence "$@"
      endLease "$1"
      left "$1"
      ;;
    confirm) [ "$#" -eq 4 ] && isList "$2" || die 'a lease, a path and a certificate' && left "$1" && revoked "$2" "$3" "$4" ;;
    list) [ "$#" -eq 1 ] && printf %s "$1" | grep -qxE "$ID{6}" || die 'one installation' && list "$1" ;;
    fingerprint) fingerprint "$@" ;;
    *) die 'no such verb' ;;
  esac
  printf 'done %s\n' "$verb"
}

main "$@" </dev/null
exit
