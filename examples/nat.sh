#!/usr/bin/env bash
# What you learn: a cloud calls a laptop behind NAT, which it could not dial.
#
# Run it as root, on Linux:    cargo build --examples && sudo examples/nat.sh
# It needs `ip` (iproute2), `nft` (nftables) and bash, and touches nothing of your network: the laptop, the router and
# the cloud are network namespaces, gone when the script ends. Nor does it touch your keys: it makes some in a directory of
# its own.
#
#     laptop  10.77.1.2 ── 10.77.1.1  router  203.0.113.1 ── 203.0.113.2  cloud
#                             masquerades; forwards from outside only what was asked for from inside
#
# You should see a dial from the cloud to the laptop fail, then the conversation of the cloud with the laptop's greeter.
# The exit code is 0 when both happened, 1 when not, and 2 when the script cannot run here.
set -euo pipefail

answered='laptop-1 has answered every call'
patience=15 # seconds for anything to happen
port=2222

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'nat.sh: %s\n' "$*" >&2; exit 1; }
cannot() { printf 'nat.sh: %s\n' "$*" >&2; exit 2; }

PATH=$PATH:/usr/sbin:/sbin
[ "$(uname)" = Linux ] || cannot "network namespaces are a thing of Linux"
[ "$(id -u)" = 0 ] || cannot "only root may make network namespaces: cargo build --examples && sudo examples/nat.sh"
for program in ip nft timeout; do
  command -v "$program" >/dev/null || cannot "$program is missing"
done
repository=$(cd "$(dirname "$0")/.." && pwd)
binaries=${CARGO_TARGET_DIR:-$repository/target}/debug/examples
for program in cloud laptop; do
  [ -x "$binaries/$program" ] || cannot "$binaries/$program is missing: cargo build --examples"
done

laptop=dialback-$$-laptop router=dialback-$$-router cloud=dialback-$$-cloud
work=$(mktemp -d)
started=()

clean_up() {
  trap - EXIT
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  for process in "${started[@]}"; do wait "$process" 2>/dev/null || true; done
  for namespace in "$laptop" "$router" "$cloud"; do ip netns del "$namespace" 2>/dev/null || true; done
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# start NAMESPACE LOG PROGRAM ARGUMENT...: runs a program inside, in the background, with its output in a file.
start() {
  local namespace=$1 log=$2
  shift 2
  printf '%s$ %s\n' "${namespace##*-}" "${1##*/} ${*:2}"
  ip netns exec "$namespace" "$@" >"$log" 2>&1 &
  started+=($!)
}

# can_dial NAMESPACE HOST: whether something answers there.
can_dial() {
  ip netns exec "$1" timeout 2 bash -c "exec 3<>/dev/tcp/$2/$port" 2>/dev/null
}

# wait_until COMMAND...: tries it ten times a second; fails when it has not succeeded after $patience seconds.
wait_until() {
  local end=$((SECONDS + patience))
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

step "three network namespaces: laptop, router, cloud"
for namespace in "$laptop" "$router" "$cloud"; do
  ip netns add "$namespace"
  ip -n "$namespace" link set lo up
done
# connect NAMESPACE ADDRESS PORT ROUTER-ADDRESS: a cable from a machine to the router, which is its way to everywhere.
connect() {
  ip -n "$1" link add eth0 type veth peer name "$3" netns "$router"
  ip -n "$1" address add "$2/24" dev eth0
  ip -n "$router" address add "$4/24" dev "$3"
  ip -n "$1" link set eth0 up
  ip -n "$router" link set "$3" up
  ip -n "$1" route add default via "$4"
}
connect "$laptop" 10.77.1.2 lan 10.77.1.1
connect "$cloud" 203.0.113.2 wan 203.0.113.1

step "the router masquerades, and lets in only answers"
ip netns exec "$router" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
rules=$(cat <<'RULES'
table ip nat {
    chain postrouting { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
table ip filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        iifname "lan" accept
        ct state established,related accept
    }
}
RULES
)
echo "$rules"
ip netns exec "$router" nft -f - <<<"$rules"

mkdir "$work/keys"
cd "$work"

step "a program that listens on the laptop: its neighbour can dial it, the cloud cannot"
start "$laptop" listener.log "$binaries/cloud" --listen "10.77.1.2:$port"
listener=$!
wait_until can_dial "$router" 10.77.1.2 || { cat listener.log >&2; fail "nothing listens on the laptop"; }
echo "router to laptop, 10.77.1.2:$port: connected"
if can_dial "$cloud" 10.77.1.2; then fail "the cloud has dialled the laptop: this is no NAT"; fi
echo "cloud to laptop, 10.77.1.2:$port: no answer"
if can_dial "$cloud" 203.0.113.1; then fail "the cloud has dialled through the router: this is no NAT"; fi
echo "cloud to router, 203.0.113.1:$port: no answer"
kill "$listener"

step "the laptop dials the cloud, and the cloud calls it back through that connection"
start "$cloud" cloud.log "$binaries/cloud" --listen "203.0.113.2:$port"
start "$laptop" laptop.log "$binaries/laptop" --hub "203.0.113.2:$port" --id laptop-1
if ! wait_until grep -q "$answered" cloud.log; then
  printf -- '-- cloud\n%s\n-- laptop\n%s\n' "$(cat cloud.log)" "$(cat laptop.log)" >&2
  fail "the laptop did not answer the cloud"
fi
cat cloud.log

step "the cloud called a laptop it cannot dial, through the router's own address"
