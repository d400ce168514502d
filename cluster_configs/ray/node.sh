#!/usr/bin/env bash
# One machine's part of a Baton cluster under Ray: what the YAML files beside this one run on every node.
#
#   node.sh head        start Ray's head node, then `baton up` on it; returns when Ray runs and `baton up` is on its way
#   node.sh worker IP   start Ray and join the head at IP
#   node.sh stop        end what `head` or `worker` started here, by pid, and nothing else: unlike `ray stop`, other
#                       Rays of the machine live on
#
# Environment, each with its default:
#   BATON_CONFIG    cluster.toml beside this file   what `baton up` gets
#   BATON_BIN       .venv/bin of this checkout      where ray and baton are
#   BATON_RUN       ~/.baton                        pids and logs: ray.log, baton.log
#   BATON_ROOM      8                               how many workers of each role this node may run; 0 for a head
#                                                   that only routes. The ratio itself is in the configuration.
#   BATON_RAY_PORT  6385                            Ray's control port, and the next one; 6379 stays free for a Redis
#   BATON_RAY_TEMP  Ray's own choice                folder for Ray's sockets and logs; short, sockets have long names
#   BATON_RAY_WAIT  180                             seconds that Ray may take to start
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=${BATON_CONFIG:-$here/cluster.toml}
bin=${BATON_BIN:-$(cd "$here/../.." && pwd)/.venv/bin}
run=${BATON_RUN:-$HOME/.baton}
room=${BATON_ROOM:-8}
port=${BATON_RAY_PORT:-6385}
wait_s=${BATON_RAY_WAIT:-180}

# Whoever reaches Ray's ports can run code unless Ray asks for a token: ~/.ray/auth_token, the same on every node.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
mkdir -p "$run"
chmod 700 "$run"

started_at() { # the moment a process began, so that a pid that was given to somebody else is never signalled
    cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null || true
}

is_ours() { # PID MOMENT
    [ -n "$2" ] && [ "$(started_at "$1")" = "$2" ]
}

launch() { # NAME COMMAND...: in the background, in a session of its own, outliving the ssh connection
    local name=$1
    shift
    setsid "$@" >>"$run/$name.log" 2>&1 </dev/null &
    echo "$! $(started_at $!)" >"$run/$name.pid"
}

end() { # NAME
    local pid began
    [ -f "$run/$1.pid" ] || return 0
    read -r pid began <"$run/$1.pid" || true
    if is_ours "$pid" "$began"; then
        kill -TERM "$pid"
        for _ in $(seq 300); do
            is_ours "$pid" "$began" || break
            sleep 0.1
        done
        is_ours "$pid" "$began" && kill -KILL -- "-$pid"
    fi
    rm -f "$run/$1.pid"
}

start_ray() { # OPTIONS...
    # InfiniBand pins the blocks' memory; each worker and each connection takes file descriptors.
    ulimit -l unlimited 2>/dev/null || echo "node.sh: locked memory stays at $(ulimit -l) KiB; RDMA needs unlimited"
    ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    [ -s "$HOME/.ray/auth_token" ] || {
        echo "node.sh: $HOME/.ray/auth_token is missing; run 'ray get-auth-token --generate' where you run 'ray up'"
        exit 2
    }
    : >"$run/ray.log"
    launch ray "$bin/ray" start --block --disable-usage-stats \
        --resources="{\"baton_prefill\": $room, \"baton_decode\": $room}" \
        ${BATON_RAY_TEMP:+--temp-dir="$BATON_RAY_TEMP"} "$@"
    local pid began
    read -r pid began <"$run/ray.pid"
    for _ in $(seq "$wait_s"); do
        grep -q "Ray runtime started" "$run/ray.log" && return 0
        is_ours "$pid" "$began" || break
        sleep 1
    done
    echo "node.sh: Ray did not start; $run/ray.log ends with:"
    tail -n 20 "$run/ray.log"
    exit 1
}

case ${1:-} in
head)
    # Baton needs neither the dashboard nor Ray Client. The one can be left out; the other cannot where grpc is
    # installed, but it asks for the token like the rest, and it need not sit on the port where others look for it.
    start_ray --head --port="$port" --include-dashboard=false --ray-client-server-port="$((port + 1))" \
        --autoscaling-config="$HOME/ray_bootstrap_config.yaml"
    RAY_ADDRESS=127.0.0.1:$port launch baton "$bin/baton" up "$config"
    echo "node.sh: Ray's head runs; baton up $config is starting, see $run/baton.log"
    ;;
worker)
    start_ray --address="${2:?give the address of the head}:$port"
    echo "node.sh: joined $2"
    ;;
stop)
    end baton
    end ray
    ;;
*)
    sed -n '2,8p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
