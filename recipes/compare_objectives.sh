#!/bin/sh
# Train the digits in equal time with three objectives, and evaluate them with equally many calls of the network.
#
#   recipes/compare_objectives.sh RECORDINGS [MINUTES] [FOLDER] [CLIPS]
#
# RECORDINGS is the folder `recordings` of the Free Spoken Digit Dataset. Each run trains for MINUTES (default: 60) with
# the config digits-small; only the objective differs. After an interruption, the same command continues the training;
# clips are sampled again. CLIPS (default: 600) of each are evaluated.
set -eu

recordings=${1:?usage: recipes/compare_objectives.sh RECORDINGS [MINUTES] [FOLDER] [CLIPS]}
minutes=${2:-60}
folder=${3:-runs/objectives}
clips=${4:-600}

train() { # NAME SETTING...
    name=$1
    shift
    resume=""
    if [ -e "$folder/$name/config.yaml" ]; then resume=--resume; fi
    sashimi-train diffusion --config digits-small $resume \
        data.path="$recordings" output_dir="$folder/$name" training.max_minutes="$minutes" training.steps=100000 \
        training.validate_bound=true training.checkpoint_every=200 training.validate_every=200 \
        sampling.num_samples=0 "$@"
}

sample() { # NAME SAMPLER STEPS: 19 or 20 calls of the network with labels and as many without for each clip
    sashimi-sample --pipeline "$folder/$1/pipeline" --num-samples "$clips" --scheduler "$2" --steps "$3" --seed 0 \
        --out "$folder/$1/clips" --overwrite
}

train v
train flow objective.name=flow
train edm objective.name=edm

sample v unipc-karras 20
sample flow flow-heun 10
sample edm edm-dpmsolver++ 20

sashimi-evaluate "v=$folder/v/clips" "flow=$folder/flow/clips" "edm=$folder/edm/clips" --reference "$recordings" \
    --pattern "{label}_{speaker}_{index}" --hold-out index=0,1,2,3,4 --json "$folder/evaluation.json"

sashimi-evaluate likelihood "$recordings" --pattern "{label}_{speaker}_{index}" --where index=0,1,2,3,4 --clips 30 \
    --pipeline "$folder/v/pipeline" --pipeline "$folder/flow/pipeline" --pipeline "$folder/edm/pipeline" \
    --json "$folder/likelihood.json"
