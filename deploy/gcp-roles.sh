#!/bin/sh
# The service accounts that deploy/gcp.yaml names, made once per project: sh deploy/gcp-roles.sh PROJECT BUCKET
# Workers read and write the bucket. The head does, too, and starts and ends instances that run as workers.
set -eu
project=$1 bucket=$2
here=$(dirname "$0")

account() { echo "circuit-sweeps-$1@$project.iam.gserviceaccount.com"; }

for node in head worker; do
  gcloud iam service-accounts create circuit-sweeps-$node --project "$project"
  gcloud storage buckets add-iam-policy-binding "gs://$bucket" \
    --member "serviceAccount:$(account $node)" --role roles/storage.objectUser
done
gcloud iam roles create circuitSweepsHead --project "$project" --file "$here/gcp-head-role.yaml"
gcloud projects add-iam-policy-binding "$project" \
  --member "serviceAccount:$(account head)" --role "projects/$project/roles/circuitSweepsHead" --condition None
# The head may start instances as a worker, and as nothing else.
gcloud iam service-accounts add-iam-policy-binding "$(account worker)" --project "$project" \
  --member "serviceAccount:$(account head)" --role roles/iam.serviceAccountUser
