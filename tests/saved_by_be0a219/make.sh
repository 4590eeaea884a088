#!/usr/bin/env bash
# Wrote everything beside this file, with the commands as they were at be0a219:
#   git worktree add /tmp/be0a219 be0a219 && cd /tmp/be0a219 && make test ARGS=--co
#   CHECKOUT=/tmp/be0a219 PYTHON=/tmp/be0a219/.venv/bin/python bash tests/saved_by_be0a219/make.sh
# (torch 2.14.1, transformers 5.23, a CPU.) It was run in /tmp/saved.
set -euo pipefail
cd "$(dirname "$0")"
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
rm -rf images tokenizer codes prior pipeline samples

"$PYTHON" - <<'PY'
import random
from pathlib import Path

from PIL import Image, ImageDraw

rng = random.Random(0)
for name in ("disc", "square"):
    Path("images", name).mkdir(parents=True)
    for index in range(6):
        picture = Image.new("RGB", (24, 24), (16, 16, 32))
        x, y, size = rng.randint(1, 8), rng.randint(1, 8), rng.randint(8, 14)
        draw, colour = ImageDraw.Draw(picture), tuple(rng.randint(96, 255) for _ in range(3))
        (draw.ellipse if name == "disc" else draw.rectangle)((x, y, x + size, y + size), fill=colour)
        picture.save(Path("images", name, f"{index}.png"))
PY

run() { "$PYTHON" "$CHECKOUT/scripts/$1.py" "${@:2}"; }
run train_tokenizer small64 --data.source images --output-dir tokenizer --max-steps 4 --save-every 2 --log-every 1 \
    --batch-size 4 --eval-every 4 --mixed-precision no --device cpu --ema-decay 0.9 --num-pictures 0 --tracking \
    --preprocessing.image-size 16 --backbone.resolution 16 --backbone.ch 8 --backbone.norm-groups 4 \
    --backbone.z-channels 8 --quantizer.codebook-size 32
run tokenize_dataset --tokenizer tokenizer --data.source images --output-dir codes --flip --images-per-shard 8
run train_prior small64 --codes codes --output-dir prior --max-steps 4 --save-every 2 --log-every 1 --batch-size 4 \
    --eval-every 4 --mixed-precision no --device cpu --ema-decay 0.9 --num-samples 0 --tracking \
    --model.hidden-size 16 --model.num-hidden-layers 1 --model.num-attention-heads 2
run make_pipeline --tokenizer tokenizer --prior prior --output-dir pipeline
run generate --pipeline pipeline --num-images 4 --seed 3 --output-dir samples
# Step 2 is what a resumed run starts from; what it has to arrive at is in the exported models and metrics.jsonl.
rm -rf {tokenizer,prior}/checkpoints/step-000000004 {tokenizer,prior,codes}/.lock
