#!/usr/bin/env bash
# Speed and learning of pretraining, as docs/results.md has them: `small` on a GPU in under half an hour,
# else `tiny`. Two runs: reconstruction and contrast of clips, then from its weights the aligned contrast.
# Usage: tools/measure_pretraining.sh TRAIN SAME UNSEEN OUT [MINUTES]
#   TRAIN, SAME, UNSEEN: shards (`--profile speakers`): to learn from; other clips of the same people;
#   clips of people not in TRAIN. OUT: folder for runs and tables. MINUTES: of training, in all.
set -euo pipefail
train=$1 same=$2 unseen=$3 out=$4 minutes=${5:-18}
mkdir -p "$out"
gpu=$(python -c 'import torch; print(int(torch.cuda.is_available()))')
if [ "$gpu" = 1 ]; then
    common=(--model.size small --data.workers 12 --loop.precision bf16 --loop.compile inductor)
    clips=(--data.batch 256 --loop.epochs 600) moments=(--data.batch 64 --loop.steps 20000)
    bench="--size base --batch 120 --steps 10 --rounds 3 --compile"
else
    common=(--data.workers 1) clips=() moments=()
    bench="--size tiny --batch 4 --steps 1 --rounds 1"
fi
cavmae bench pretrain $bench --out "$out/speed.json" | tee "$out/speed.md"
common+=(--data.train "$train" --resume auto --model.image_height 224 --model.image_width 224
    --data.crop 0.7 --data.flip true)
newest() { ls -d "$1"/checkpoints/[0-9]* | tail -n 1; }
# SIGTERM after the time allowed: the run saves and ends well.
timeout --preserve-status -s TERM $((minutes * 30)) cavmae pretrain --config tiny "${common[@]}" "${clips[@]}" \
    --out "$out/clips" --data.held_out "$same" --objective.mask_ratio_audio 0.75 --objective.mask_ratio_image 0.75
cavmae retrieve "$(newest "$out/clips")" "$same" --json "$out/same.json"
cavmae retrieve "$(newest "$out/clips")" "$unseen" --json "$out/unseen.json"
timeout --preserve-status -s TERM $((minutes * 30)) cavmae pretrain --config tiny-aligned "${common[@]}" "${moments[@]}" \
    --out "$out/moments" --data.held_out "$unseen" --model.weights "$(newest "$out/clips")" --model.partial true
cavmae inpaint "$(newest "$out/clips")" "$unseen" --out "$out/inpaint.png"
cat "$out/speed.md"
grep held_out "$out/clips/metrics.jsonl" | tail -n 1
grep held_out "$out/moments/metrics.jsonl" | tail -n 1
