#!/usr/bin/env bash
# bash tools/gpu_run.sh [SECONDS]: measures and trains on a borrowed GPU without a network.
#
# From the repository's root, which holds .gpu/site.tar.xz (Python packages that the machine lacks,
# a folder `site`) and, for `rates`, `train` and `talkers`, .gpu/sound.tar (folders `speech/NAME`, of
# which `valid` is for measuring only, and `noise/NAME`). PyTorch, torchaudio, timm, accelerate,
# torchmetrics and scipy are there.
# Results, at most 8 files of 16 MB, go to $OUT: tables, metrics, logs, and the averaged weights in
# half precision (`cat half.safetensors.* > model.safetensors`).
# A second call on the same machine finds what the first has unpacked, decoded and measured, so that
# a short one may try the way before the long one.
#
#   STAGES="rates train"   stages of this call, in this order:
#     parity           losses and gradients by precision and compiled beside the CPU's, and short
#                      runs of pretraining in every precision, compiled, and with FSDP2
#     pretrain-speed   steps of pretraining beside the reference's and eager fp32
#     finetune-speed   steps of the speaker model
#     rates            steps of the sound separator, by the way of a step
#     train            the sound separator, for the time that is left
#     talkers          a corpus of talkers, rendered by the CPU cores beside the other stages
#     speakers         an encoder, a reader of lips, then the speaker model, for the time that is
#                      left, from the separator and the talkers of this call or an earlier one
#   DEVICE=cuda   cpu: a rehearsal       SIZE=base    recipe of `cavmae finetune separator`, or a file
#   BATCH=32      of a training step     MORE=        further options of the training
#   TOGETHER=32   batches whose mixtures are made in one go    STEPS=   of training; empty: by the rate
#   WAY=          of a step, `COMPILE GRAPH` such as `inductor true`; empty: the fastest of all
#   MODEL=base    of pretraining, in the first two stages
#   SPEAKER=small of fine-tuning: a recipe; in `speakers` also a file
#   TALKERS=1500  clips of talkers       VOICES=many  folder of `speech` with their voices
#   ENCODER_SECONDS=90, LIPS_SECONDS=60   of training the encoder, and the reader of lips
#   SCENES=12     of a step of the speaker model
set -u
seconds=${1:-560}
export PYTHONUNBUFFERED=1 OUT=${OUT:-/tmp/gpu-run-out}
DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-base} BATCH=${BATCH:-32} MORE=${MORE:-} WAY=${WAY:-} G=${G:-/tmp/gpu-run}
STAGES=${STAGES:-rates train} MODEL=${MODEL:-base} SPEAKER=${SPEAKER:-small}
TALKERS=${TALKERS:-1500} VOICES=${VOICES:-many} SCENES=${SCENES:-12}
# nproc would take OMP_NUM_THREADS for the number of cores.
cores=$(env -u OMP_NUM_THREADS nproc) && loaders=$((cores > 2 ? cores - 2 : 1))
compiler=inductor precision=bf16 rounds=3 steps=32 together=${TOGETHER:-32}
[ "$DEVICE" = cuda ] || { compiler=off precision=fp32 rounds=1 steps=2 together=${TOGETHER:-2}; }
for stage in $STAGES; do
    case $stage in
        parity | pretrain-speed | finetune-speed | rates | train | talkers | speakers) ;;
        *) echo "STAGES: there is no stage $stage." >&2 && exit 2 ;;
    esac
done
mkdir -p "$G" "$OUT"
if [ ! -f "$G/unpacked" ]; then
    python3 - "$G" <<'P' || exit 1
import sys, tarfile
from pathlib import Path
for name in ("site.tar.xz", "sound.tar"):
    if Path(".gpu", name).exists():
        with tarfile.open(Path(".gpu", name)) as archive:
            archive.extractall(sys.argv[1], filter="data")
P
    touch "$G/unpacked"
fi
export PYTHONPATH=$PWD/.typing
[ "$DEVICE" = cpu ] || PYTHONPATH=$PYTHONPATH:$G/site
listed() { printf '['; printf '%s\n' "$@" | paste -sd, | tr -d '\n'; printf ']'; }
left() { local n=$(($1 - SECONDS)); echo $((n > 5 ? n : 5)); }
{ nvidia-smi; nproc; python3 --version; python3 -c 'import torch; print(torch.__version__)'; } \
    > "$OUT/machine.txt" 2>&1

complete() { compgen -G "$1/checkpoints/*/COMPLETE" > /dev/null; }
wanted() { case " $STAGES " in *" $1 "*) ;; *) return 1 ;; esac; }
cavmae() { timeout -k 5 "$(left "$seconds")" python3 -m cavmae.tools.cli "$@"; }
table() { # FILE COMMAND...: what a command prints, into a file of $OUT and on the screen
    local file=$OUT/$1
    shift
    { echo "\$ $*"; cavmae "$@" || echo "ended with $?"; } 2>&1 | tee -a "$file"
}

# A corpus of talkers, beside what keeps the GPU busy; an interrupted one goes on.
talkers() {
    cavmae render-talkers --out "$G/talkers" --clips "$TALKERS" --seed 11 --silent 0.2 \
        --speech "$G/speech/$VOICES" --valid-share 0 --test-share 0 --workers "$cores" &&
        cavmae shard "$G/talkers/train.csv" --out "$G/learn" --profile speakers &&
        cavmae check "$G/learn"
}
if wanted talkers; then
    nice -n 5 bash -c "$(declare -f talkers cavmae left); seconds=$seconds SECONDS=$SECONDS; \
        G='$G' TALKERS=$TALKERS VOICES=$VOICES cores=$cores; talkers" > "$G/talkers.log" 2>&1 &
    rendering=$!
fi

# Made clips of 12 speakers, for the stages that read shards.
if { wanted parity || wanted finetune-speed; } && [ ! -f "$G/clips/manifest.json" ]; then
    mkdir -p "$G/videos"
    python3 -c '
import sys
from pathlib import Path
from cavmae.tools.benchmarks.media import VideoSpec, make_video
rows = ["path,speaker"]
for n in range(12):
    make_video(Path(sys.argv[1], f"{n}.mp4"), VideoSpec(seconds=6.0, size=(320, 240), seed=n))
    rows.append(f"{n}.mp4,s{n}")
Path(sys.argv[1], "list.csv").write_text("\n".join(rows))
' "$G/videos"
    cavmae shard "$G/videos/list.csv" --out "$G/clips" --profile speakers --shard-samples 2 \
        2> "$G/shard.log"
fi

# 1. Parity, and that every way of training runs at all: on random clips, for four steps.
smoke() { # NAME LAUNCHER OPTIONS...
    local name=$1 launcher=$2
    shift 2
    # shellcheck disable=SC2086
    timeout -k 5 "$(left "$seconds")" python3 $launcher -m cavmae.pretrain.train \
        --out "$G/smoke-$name" --data.train "$G/clips" --data.batch-size 2 --data.window 0.96 --data.workers 1 \
        --data.statistics audioset --model.size tiny --model.audio-frames 96 --loop.steps 4 --loop.log-every 2 \
        --loop.device "$DEVICE" --loop.tracker none "$@" > "$G/smoke-$name.log" 2>&1
    echo "pretraining, $name: exit code $?; $(grep -a '^step 4' "$G/smoke-$name.log")"
}
if wanted parity; then
    table parity.md bench parity --device "$DEVICE" --size "$MODEL" --speaker "$SPEAKER" \
        --compile "$compiler"
    {
        smoke fp32 "" --loop.precision fp32
        smoke bf16 "" --loop.precision bf16
        if [ "$DEVICE" = cuda ]; then
            smoke fp16 "" --loop.precision fp16
            smoke compiled "" --loop.precision bf16 --loop.compile inductor
            smoke fsdp2 "-m accelerate.commands.launch --use_fsdp --fsdp_version 2 --num_processes 1 \
                --num_machines 1 --mixed_precision no --dynamo_backend no \
                --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \
                --fsdp_transformer_layer_cls_to_wrap Block" --loop.precision fp32
        fi
    } | tee -a "$OUT/parity.md"
fi

# 2. Speed of the other tasks: the reference's steps and eager fp32 are in the tables.
if wanted pretrain-speed; then
    sweep=()
    [ "$DEVICE" = cpu ] || sweep=(--sweep '[128,256]')
    table pretrain.md bench pretrain --device "$DEVICE" --size "$MODEL" --batch-size "$BATCH" \
        --steps "$steps" --rounds "$rounds" "${sweep[@]}"
    table load.md bench load --rounds "$rounds"
fi
if wanted finetune-speed; then
    table finetune.md bench finetune --device "$DEVICE" --size "$SPEAKER" --encoder-size "$SPEAKER" \
        --data-set "$G/clips" --batch-size "$BATCH" --steps "$steps" --rounds "$rounds"
fi
# (Not indented: lines of Python are among these.)
if wanted rates || wanted train; then

# 3. The sound separator: recordings are decoded while the GPU is tried.
valid=$G/speech/valid cache=$G/cache
mapfile -t folders < <(find "$G/speech" -mindepth 1 -maxdepth 1 -type d ! -name '*valid' | sort)
train=$(listed "${folders[@]}")
noise=$(listed "$G"/noise/*/)
data=(--data.train "$train" --data.noise "$noise" --data.held-out "[$valid]" --data.cache "$cache")
# Not from standard input: worker processes could not import such a module.
python3 -c '
import sys
from pathlib import Path
from cavmae.datasets.mixtures.speech_bank import load_or_build_bank
for folders in sys.argv[2:]:
    names = [Path(name) for name in folders.strip("[]").split(",")]
    bank = load_or_build_bank(names, Path(sys.argv[1]))
    print(f"{bank.seconds / 60:.1f} min, {len(bank.names)} speakers")
' "$cache" "$train" "$noise" > "$G/bank.log" 2>&1 &
bank=$!

# 4. Equality with the CPU, and rates.
bench() {
    timeout -k 5 "$2" python3 -m cavmae.tools.cli bench sound-steps --speech "[$valid]" \
        --cache "$cache" --device "$DEVICE" --precision "$precision" --batch-size "$BATCH" \
        --made-together "$together" --steps "$steps" --rounds 1 --recipes "[$SIZE]" \
        --compile "$1" --out "$G/rates-$1.json"
}
if [ ! -f "$G/rates.md" ]; then
    if bench false "${BENCH_SECONDS:-60}" > "$OUT/rates.md" 2>&1; then
        if [ "$DEVICE" = cuda ]; then
            bench true "${COMPILE_SECONDS:-130}" >> "$OUT/rates.md" 2>&1
        fi
        cp "$OUT/rates.md" "$G/"
    fi
else
    cp "$G/rates.md" "$OUT/"
fi
cat "$OUT/rates.md"
wait "$bank"
tail -n 3 "$G/bank.log"
fi

# 5. Training for the time that is left, but for the last measures and the way back.
plan() { # prints the way of a step and the steps that fit into so many seconds: COMPILE GRAPH STEPS
    python3 - "$G" "$1" "$BATCH" "$2" <<'P'
import json, sys
from pathlib import Path
folder, budget, batch, way = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
names = {"eager": "off false", "replayed": "off true", "compiled": "inductor false",
         "compiled and replayed": "inductor true"}
rates = {"off false": 100.0}
for path in folder.glob("rates-*.json"):
    for row in json.loads(path.read_text())["rows"]:
        own = names.get(row["name"].partition(", ")[2])
        if own and row["seconds"]:
            rates[own] = 1 / row["seconds"]
way = way or max(rates, key=rates.__getitem__)
start = 50 if "inductor" in way else 20  # imports, recordings, compilation
print(way, max(4, int(0.93 * (budget - start) * rates.get(way, 100.0) / batch)))
P
}
train() { # with so many seconds, in this way; empty: the fastest
    local compile graph count
    read -r compile graph count < <(plan "$1" "$2")
    count=${STEPS:-$count}
    echo "training: $count steps of $BATCH in $1 s, torch.compile $compile, CUDA graph $graph"
    # shellcheck disable=SC2086
    timeout -s TERM -k 20 "$(($1 + 10))" python3 -m cavmae.finetune.separation.train \
        --config "$SIZE" --out "$G/run" "${data[@]}" --data.made-together "$together" \
        --data.batch-size "$BATCH" --loop.steps "$count" --loop.precision "$precision" \
        --loop.compile "$compile" --loop.cuda-graph "$graph" --loop.device "$DEVICE" \
        --loop.tracker none --loop.log-every 100 --loop.evaluate-every $((count / 6 + 1)) \
        --loop.save-every 0 --loop.save-minutes 3 $MORE >> "$OUT/train.log" 2>&1
}
if wanted train; then
    rm -rf "$G/run"
    for way in "$WAY" "off true" "off false"; do
        budget=$(($(left "$seconds") - ${RESERVE:-40}))
        [ "$budget" -gt 20 ] || budget=20
        train "$budget" "$way"
        complete "$G/run" && break
        tail -n 5 "$OUT/train.log"
    done
    tail -n 12 "$OUT/train.log"
    complete "$G/run" || { echo "Nothing was trained." >&2 && exit 1; }
fi

# 6. The speaker model, from that separator and an encoder of these talkers.
# Newest checkpoint of a run; its averaged weights, if there are any.
newest() { dirname "$(find "$1/checkpoints" -mindepth 2 -maxdepth 2 -name COMPLETE | sort | tail -n 1)"; }
averaged() { local last && last=$(newest "$1") && [ -d "$last/average" ] && last+=/average; echo "$last"; }
if wanted talkers; then
    wait "$rendering"
    tail -n 4 "$G/talkers.log"
fi
if wanted speakers; then
    complete "$G/run" && [ -f "$G/learn/stats.json" ] ||
        { echo "speakers: run the stages train and talkers first." >&2 && exit 1; }
    if ! complete "$G/encoder"; then
        timeout -s TERM -k 20 "${ENCODER_SECONDS:-90}" python3 -m cavmae.pretrain.train \
            --config tiny --out "$G/encoder" --data.train "$G/learn" --model.image-height 224 \
            --model.image-width 224 --data.workers "$loaders" --loop.device "$DEVICE" \
            --loop.precision "$precision" --loop.tracker none --loop.evaluate-every 0 \
            --loop.save-every 0 ${ENCODER_MORE:-} > "$OUT/encoder.log" 2>&1
        tail -n 3 "$OUT/encoder.log"
    fi
    if ! complete "$G/lips"; then
        # shellcheck disable=SC2086
        timeout -s TERM -k 20 "${LIPS_SECONDS:-60}" python3 -m cavmae.finetune.speaker.train \
            --config "$SPEAKER" --out "$G/lips" --data.train "$G/learn" --model.freeze masks \
            --data.batch-size "$SCENES" --data.workers "$loaders" --optimizer.schedule constant \
            --optimizer.ema 0.995 --optimizer.lr 2e-3 --loop.steps "${SPEAKER_STEPS:-100000}" \
            --loop.device "$DEVICE" --loop.precision "$precision" --loop.tracker none \
            --loop.log-every 50 --loop.evaluate-every 0 --loop.save-every 0 ${SPEAKER_MORE:-} \
            > "$OUT/lips.log" 2>&1
        tail -n 3 "$OUT/lips.log"
    fi
    rm -rf "$G/speaker"
    budget=$(($(left "$seconds") - ${RESERVE:-40}))
    # No schedule: the time, not the number of steps, is known. The average settles it.
    # shellcheck disable=SC2086
    timeout -s TERM -k 20 "$((budget > 20 ? budget : 20))" python3 -m cavmae.finetune.speaker.train \
        --config "$SPEAKER" --out "$G/speaker" --data.train "$G/learn" \
        --data.batch-size "$SCENES" --data.workers "$loaders" \
        --model.encoder-from "$(newest "$G/encoder")" --model.sound-from "$(averaged "$G/run")" \
        --model.lips-from "$(averaged "$G/lips")" \
        --model.sound-lr-scale 0 --optimizer.schedule constant --optimizer.ema 0.998 \
        --loop.steps "${SPEAKER_STEPS:-100000}" --loop.device "$DEVICE" --loop.precision "$precision" \
        --loop.tracker none --loop.log-every 50 --loop.evaluate-every 0 --loop.save-every 0 \
        --loop.save-minutes 3 ${SPEAKER_MORE:-} > "$OUT/speaker.log" 2>&1
    tail -n 5 "$OUT/speaker.log"
    complete "$G/speaker" || { echo "No speaker model was trained." >&2 && exit 1; }
fi

# 7. What comes back.
bring_back() { # RUN PREFIX
    cp "$1/metrics.jsonl" "$OUT/$2metrics.jsonl"
    cp "$1/config.yaml" "$OUT/$2config.yaml"
    python3 - "$(averaged "$1")" "$OUT/$2model.json" "$1/half.safetensors" <<'P'
import shutil, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
last = Path(sys.argv[1])
weights = load_file(last / "model.safetensors")
half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
save_file(half, sys.argv[3], {"format": "pt"})
shutil.copy(last / "config.json", sys.argv[2])
P
    split -b 16000000 -d "$1/half.safetensors" "$OUT/$2half.safetensors."
}
if wanted train; then bring_back "$G/run" ""; fi
if wanted speakers; then bring_back "$G/speaker" speaker-; fi
# Large weights take more files: those that are read in one go share one.
if [ "$(find "$OUT" -type f | wc -l)" -gt 8 ]; then
    (cd "$OUT" && find . -type f ! -name '*half.safetensors.*' -printf '%P\0' |
        tar -cf texts.tar --null -T - --remove-files)
fi
ls -la "$OUT"
