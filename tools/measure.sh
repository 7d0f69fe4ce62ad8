#!/usr/bin/env bash
# Measurements of docs/benchmarks on a GPU or a CPU, stage by stage, on talkers rendered here.
# Usage: tools/measure.sh OUT [STAGE ...]
#   corpus    talkers and their shards: `learn`, `same` (other clips of its people), `unseen`, `more` (other people)
#   parity    loss and gradients of a training step in every precision, the CPU in fp32 as reference
#   resume    a run resumed from a checkpoint, compared with an uninterrupted one
#   speed     speed of pretraining and fine-tuning steps
#   compiled  parity and speed with compiled blocks (GPU)
#   clips     CAV-MAE: reconstruction and contrast of clips; retrieval
#   moments   contrast of frames and time bins, from the weights of `clips`
#   encoder   reconstruction at 224x224 from scratch: the encoder of `speakers`
#   speakers  training of the speaker model
#   evaluate  metrics of the speaker model on fixed lists of unseen people
#   voices    speed of `separate`; difference of the voices from the CPU's
# Without stages all of them run, in this order. Finished work is kept; a stage that fails or exceeds its time stops
# no other. `OUT/NAME.log` holds the output of a stage, `OUT/tables.md` the tables, which are printed last.
# Environment:
#   LEARN, UNSEEN, MORE  folders of recordings of different people; unset: espeak-ng speaks, and there is no `more`
#   CLIPS           maximum of training clips, rendered CHUNK at a time;  RENDER_SECONDS  after which no chunk starts
#   ENCODER_SECONDS, SPEAKER_SECONDS, CLIPS_SECONDS, MOMENTS_SECONDS  of training
#   WORKERS         processes that load or compose
#   BATCH, RATE     scenes of a step, learning rate of `speakers`
#   DEVICE=cpu      despite a GPU;  TINY=1  to test the script itself in minutes
#   MORE_SPEAKERS   further options of `cavmae finetune speakers`
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd) && shift || exit 2
device=${DEVICE:-$(python3 -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
cores=$(nproc) tiny=${TINY:-}
if [ "$device" = cuda ]; then
    size=small batch=${BATCH:-16} rate=${RATE:-1.2e-3} precision=bf16 parity=base speaker=small try=60 slack=1
    bench_pretrain=(--size base --batch-size 64 --steps 10 --rounds 1 --sweep '[128,256]')
    bench_finetune=(--steps 20 --rounds 1)
    workers=${WORKERS:-$((cores > 3 ? cores - 3 : 1))}
else
    size=tiny batch=${BATCH:-4} rate=${RATE:-1e-3} precision=fp32 parity=small speaker=tiny try=12 slack=10
    bench_pretrain=(--size small --batch-size 8 --steps 2 --rounds 3)
    bench_finetune=(--steps 2 --rounds 1)
    workers=${WORKERS:-1}
fi
clips=${CLIPS:-3000} unseen=120 scenes=100 render=${RENDER_SECONDS:-3600} side=224
encoder_seconds=${ENCODER_SECONDS:-300} speaker_seconds=${SPEAKER_SECONDS:-3600}
clips_seconds=${CLIPS_SECONDS:-540} moments_seconds=${MOMENTS_SECONDS:-540}
encoder_batch=128 chunk=${CHUNK:-600}
if [ -n "$tiny" ]; then
    clips=24 unseen=8 scenes=2 side=64 chunk=12 try=2 batch=2 encoder_batch=4 workers=1
    encoder_seconds=10 speaker_seconds=20 clips_seconds=10 moments_seconds=10 parity=tiny speaker=tiny size=tiny
    bench_pretrain=(--size tiny --batch-size 2 --steps 1 --rounds 1 --image 64 --audio-frames 64)
    bench_finetune=(--steps 1 --rounds 1)
fi
small=(--compose.height $side --compose.width $side)
common=(--loop.device "$device" --loop.precision $precision --loop.save_every 0 --loop.save_minutes 2)
newest() { find "$1/checkpoints" -maxdepth 1 -name '[0-9]*' | sort | tail -n 1; }
# limit SECONDS COMMAND...: time limit on a GPU; a CPU gets ten times as long.
limit() { timeout -k 30 $(($1 * slack)) "${@:2}"; }
# Another process of this script may still write the shards.
wait_for() {
    for _ in $(seq "${WAIT:-600}"); do [ -f "$out/$1/stats.json" ] && return; sleep 1; done
    echo "There is no $out/$1: run the stage corpus first." >&2
    return 1
}
# trained SECONDS RUN COMMAND...: trains as many steps as the time allows, so that the schedule reaches its end.
trained() {
    local seconds=$1 run=$2
    shift 2
    if [ ! -f "$run.steps" ]; then
        rm -rf "$run.try"
        "$@" --out "$run.try" --loop.steps "$try" --loop.log_every $((try / 2)) || return
        python3 - "$run.try/metrics.jsonl" "$seconds" "$try" > "$run.steps" <<'PYTHON' || return
import json
import sys

lines = [json.loads(line) for line in open(sys.argv[1])]
step = [line["step_time"] for line in lines if "step_time" in line][-1]
print(max(int(sys.argv[3]), int(float(sys.argv[2]) * 0.93 / step)))
PYTHON
        rm -rf "$run.try/checkpoints"
    fi
    # A run that is slower than estimated gets SIGTERM: it saves and exits with 0.
    timeout --preserve-status -s TERM -k 60 $((seconds * 21 / 20 + 15)) "$@" --out "$run" --resume auto \
        --loop.steps "$(cat "$run.steps")"
}
rendered() { # NAME CLIPS RECORDINGS SEED
    local speech=()
    [ -n "$3" ] && speech=(--speech "$3")
    cavmae render-talkers --out "$out/talkers-$1" --clips "$2" --seed "$4" --height $side "${speech[@]}" \
        --valid_share 0 --test_share 0 --workers "$workers" "${@:5}"
}
sharded() { # NAME TABLE
    cavmae shard "$2" --out "$out/$1" --profile speakers --shorter_side $side --shard_samples 25 --decoder pyav \
        --workers "$workers" &&
        cavmae check "$out/$1" --workers "$workers"
}
corpus() {
    local unseen_speech=${UNSEEN:-} number table
    rendered unseen $unseen "$unseen_speech" 2 && sharded unseen "$out/talkers-unseen/train.csv" || return
    # Training clips hold only audio with ground truth.
    for number in $(seq $chunk $chunk "$clips"); do
        [ $SECONDS -lt "$render" ] || break
        rendered learn "$number" "${LEARN:-}" 1 --noise 0 --music 0 --off_screen_voice 0 --desync 0 || return
    done
    table=$out/talkers-learn
    awk 'NR == 1 || NR % 20 == 2' "$table/train.csv" > "$table/same.csv"
    awk 'NR == 1 || NR % 20 != 2' "$table/train.csv" > "$table/learn.csv"
    sharded learn "$table/learn.csv" && sharded same "$table/same.csv" || return
    if [ -n "${MORE:-}" ]; then
        rendered more $unseen "$MORE" 3 && sharded more "$out/talkers-more/train.csv"
    fi
}
parity() {
    limit 150 cavmae bench parity --size $parity --speaker $speaker --device "$device" \
        --out "$out/parity.json" | tee "$out/parity.md"
}
# resumed NAME COMMAND...: six steps, and the last three again from the checkpoint after three.
resumed() {
    local name=$1 run=$out/resume-$1
    shift
    rm -rf "$run" "$run-again"
    "$@" --out "$run" --loop.steps 6 --loop.save_every 3 --loop.log_every 1 || return
    mkdir -p "$run-again/checkpoints" && cp -r "$run/checkpoints/000000003" "$run-again/checkpoints/" || return
    "$@" --out "$run-again" --loop.steps 6 --loop.save_every 3 --loop.log_every 1 --resume auto || return
    python3 - "$name" "$run" "$run-again" <<'PYTHON' | tee -a "$out/resume.md"
import sys

import torch
from safetensors.torch import load_file

name, *runs = sys.argv[1:]
first, again = (load_file(f"{run}/checkpoints/000000006/model.safetensors") for run in runs)
before = load_file(f"{runs[0]}/checkpoints/000000003/model.safetensors")
same = all(torch.equal(first[k], again[k]) for k in first)
apart = sum((first[k] - again[k]).double().square().sum() for k in first).sqrt()
moved = sum((first[k] - before[k]).double().square().sum() for k in first).sqrt()
print(f"resumed, {name}: equal to the bit: {same}; apart by {apart / moved:.1e} of what three steps moved")
PYTHON
}
resume() {
    wait_for unseen || return
    rm -f "$out/resume.md"
    local precisions=(fp32 bf16) which
    [ "$device" = cpu ] || precisions+=(fp16)
    for which in "${precisions[@]}"; do
        resumed "pretraining $which" limit 60 cavmae pretrain --config tiny --data.train "$out/unseen" \
            --data.batch_size 8 --model.image_height $side --model.image_width $side --loop.device "$device" \
            --loop.precision "$which"
    done
    resumed "speakers $precision" limit 90 cavmae finetune speakers --config $size --data.train "$out/unseen" \
        --data.batch_size 2 --data.workers 1 --model.train_encoder all --model.encoder.size tiny "${small[@]}" \
        --loop.device "$device" --loop.precision $precision
}
speed() {
    limit 150 cavmae bench pretrain "${bench_pretrain[@]}" --device "$device" --out "$out/pretrain.json" |
        tee "$out/pretrain.md"
    wait_for unseen && limit 120 cavmae bench finetune --data-set "$out/unseen" --size $size \
        --encoder-size tiny --batch-size "$batch" --workers "$workers" "${bench_finetune[@]}" --device "$device" \
        --out "$out/finetune.json" | tee "$out/finetune.md"
}
compiled() {
    [ "$device" = cuda ] || return 0
    [ -s "$out/parity-compiled.md" ] || limit 120 cavmae bench parity --size small --speaker $speaker --device cuda \
        --compile inductor --out "$out/parity-compiled.json" | tee "$out/parity-compiled.md"
    limit 150 cavmae bench pretrain --size base --batch-size 64 --steps 10 --rounds 1 --compile --out "$out/compiled.json" |
        tee "$out/compiled.md"
}
pretraining=(--data.train "$out/learn" --data.workers "$workers" --data.crop 0.7 --data.flip true --data.batch_size $encoder_batch
    --model.image_height $side --model.image_width $side "${common[@]}")
clips() {
    wait_for same || return
    trained "$clips_seconds" "$out/clips" cavmae pretrain --config tiny "${pretraining[@]}" --data.held_out "$out/same" \
        --objective.mask_ratio_audio 0.75 --objective.mask_ratio_image 0.75 || return
    cavmae retrieve "$(newest "$out/clips")" "$out/same" --json "$out/same.json" | tee "$out/same.md"
    cavmae retrieve "$(newest "$out/clips")" "$out/unseen" --json "$out/unseen.json" | tee "$out/unseen.md"
}
moments() {
    wait_for learn || return
    trained "$moments_seconds" "$out/moments" cavmae pretrain --config tiny-aligned "${pretraining[@]}" \
        --data.batch_size $((encoder_batch / 2)) --data.held_out "$out/unseen" \
        --model.weights "$(newest "$out/clips")" --model.partial true || return
    grep held_out "$out/moments/metrics.jsonl" | tail -n 1 | tee "$out/moments.md"
}
encoder() {
    wait_for learn || return
    trained "$encoder_seconds" "$out/encoder" cavmae pretrain --config tiny "${pretraining[@]}" \
        --objective.contrastive_weight 0 --objective.mask_ratio_audio 0.75 --objective.mask_ratio_image 0.75 \
        --objective.decode_fraction 0.3 --optimizer.lr 1e-3 --optimizer.schedule cosine || return
    cavmae inpaint "$(newest "$out/encoder")" "$out/unseen" --out "$out/inpaint.png"
    tail -n 1 "$out/encoder/metrics.jsonl" | tee "$out/encoder.md"
}
speakers() {
    wait_for learn || return
    # shellcheck disable=SC2086
    trained "$speaker_seconds" "$out/speakers" cavmae finetune speakers --config $size --data.train "$out/learn" \
        --data.batch_size "$batch" --data.workers "$workers" --data.verify size --model.encoder-from "$(newest "$out/encoder")" \
        --optimizer.lr "$rate" "${small[@]}" "${common[@]}" ${MORE_SPEAKERS:-} || return
    tail -n 1 "$out/speakers/metrics.jsonl" | tee "$out/speakers.md"
}
listed() { # NAME SHARDS OPTIONS...
    [ -f "$out/$1.jsonl" ] ||
        cavmae make-scenes "$2" --list "$out/$1.jsonl" --count $scenes "${small[@]}" "${@:3}"
}
measured() { # NAME LIST SHARDS OPTIONS...
    rm -rf "${out:?}/$1" # of an earlier checkpoint
    echo "## $1" | tee "$out/evaluate-$1.md"
    limit "${EVALUATE_SECONDS:-900}" cavmae evaluate "$3" --model "$(newest "$out/speakers")" \
        --list "$out/$2.jsonl" --workers "$workers" --device "$device" --out "$out/$1" "${@:4}" | tee -a "$out/evaluate-$1.md"
}
evaluate() {
    local two=(--compose.people '[0,1,0]' --compose.silent_prob 0 --compose.all_off_screen_prob 0 --compose.off_screen_prob 0 --compose.noise_prob 0)
    wait_for unseen || return
    listed pairs "$out/unseen" "${two[@]}" && measured pairs pairs "$out/unseen"
    listed people "$out/unseen" --seed 1 && measured people people "$out/unseen" --references false
    if [ -f "$out/more/stats.json" ]; then
        listed more-pairs "$out/more" "${two[@]}" && measured more-pairs more-pairs "$out/more" --references false
    fi
    measured cued pairs "$out/unseen" --cue box --references false
}
voices() {
    local model video where
    model=$(newest "$out/speakers") video=$out/talkers-unseen/clips/000000/000000.mp4
    for where in cpu "$device"; do
        rm -rf "$out/voices-$where"
        cavmae separate "$video" --out "$out/voices-$where" --model "$model" --device "$where" --overlay false || return
    done
    python3 - "$out/voices-cpu" "$out/voices-$device" <<'PYTHON' | tee "$out/voices.md"
import pathlib
import sys

import numpy as np
import soundfile

for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.wav")):
    a, _ = soundfile.read(path)
    b, _ = soundfile.read(pathlib.Path(sys.argv[2]) / path.relative_to(sys.argv[1]))
    noise = 10 * np.log10((np.sum(a**2) + 1e-9) / (np.sum((a - b) ** 2) + 1e-9))
    print(f"voices, {path.name}: the difference from the CPU's is {noise:.1f} dB below it")
PYTHON
    for where in fp32 bf16; do
        limit 100 cavmae bench separate --models "[$model]" --rounds 1 \
            --device "$device" --precision $where --out "$out/separate-$where.json" | tee "$out/separate-$where.md"
    done
}
: >> "$out/stages.txt"
for stage in "${@:-corpus parity resume speed compiled clips moments encoder speakers evaluate voices}"; do
    for name in $stage; do
        began=$SECONDS
        if "$name" > "$out/$name.log" 2>&1; then state="done"; else state="FAILED ($?), see $name.log"; fi
        echo "$name: $state, $((SECONDS - began)) s" | tee -a "$out/stages.txt"
    done
done
for name in parity parity-compiled resume pretrain compiled finetune encoder speakers same unseen moments evaluate-pairs \
    evaluate-people evaluate-more-pairs evaluate-cued voices separate-fp32 separate-bf16; do
    [ ! -s "$out/$name.md" ] || { cat "$out/$name.md" && echo; }
done > "$out/tables.md"
cat "$out/tables.md" "$out/stages.txt"
