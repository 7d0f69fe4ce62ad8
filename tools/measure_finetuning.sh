#!/usr/bin/env bash
# Speed and learning of fine-tuning, as docs/results.md has them: `small` on a GPU in under half an hour, else `tiny`.
# Usage: tools/measure_finetuning.sh TRAIN UNSEEN ENCODER OUT [MINUTES]
#   TRAIN, UNSEEN: shards (`--profile speakers`) of different people; ENCODER: a checkpoint of `cavmae pretrain`
#   (`tiny-aligned` or larger); OUT: folder for lists, runs and tables; MINUTES: of training.
set -euo pipefail
train=$1 unseen=$2 encoder=$3 out=$4 minutes=${5:-18}
mkdir -p "$out"
gpu=$(python -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$gpu" = 1 ]; then
    size=small batch=16 workers=14 how=(--loop.precision bf16)
    bench="--steps 10 --rounds 2"
else
    size=tiny batch=4 workers=1 how=()
    bench="--steps 2 --rounds 1"
fi
cavmae bench finetune --data_set "$train" --encoder "$encoder" --size $size --batch $batch --workers $workers $bench \
    --out "$out/speed.json" | tee "$out/speed.md"
# As many steps as the time allows, so that the learning rate falls to its end; a fifth is for all that is not a step.
[ -f "$out/steps" ] || python - "$out/speed.json" $batch "$minutes" > "$out/steps" <<'PYTHON'
import json
import sys

rows = json.load(open(sys.argv[1]))["rows"]
seconds = next(row["seconds"] for row in rows if row["name"] == "training step") * int(sys.argv[2])
print(max(1, int(float(sys.argv[3]) * 60 * 0.8 / seconds)))
PYTHON
pairs=$out/pairs.jsonl people=$out/people.jsonl
[ -f "$pairs" ] || cavmae evaluate "$unseen" --list "$pairs" --make 100 --compose.people '[0,1,0]' \
    --compose.silent 0 --compose.unrelated 0 --compose.off_screen 0 --compose.noise 0
[ -f "$people" ] || cavmae evaluate "$unseen" --list "$people" --make 100 --seed 1
cavmae finetune speakers --config $size --out "$out/run" --resume auto --data.train "$train" --model.encoder "$encoder" \
    --data.batch $batch --data.workers $workers --loop.steps "$(cat "$out/steps")" "${how[@]}"
model=$(ls -d "$out"/run/checkpoints/[0-9]* | tail -n 1)
cavmae evaluate "$unseen" --model "$model" --list "$pairs" --out "$out/pairs"
cavmae evaluate "$unseen" --model "$model" --list "$people" --out "$out/people"
cavmae evaluate "$unseen" --model "$model" --list "$pairs" --cue box --references false --out "$out/cued"
cat "$out/speed.md"
