#!/bin/sh
# The roles that cluster.yaml names, made once per account: sh deploy/aws-roles.sh BUCKET
# Workers read and write the bucket. The head does, too, and starts, tags and ends instances of this cluster as workers.
# Whoever runs `ray up` needs iam:PassRole on the head's role besides what Ray asks of EC2 (docs/security.md).
set -eu
bucket=$1
account=$(aws sts get-caller-identity --query Account --output text)
here=$(dirname "$0")

filled() { sed -e "s/BUCKET/$bucket/g" -e "s/ACCOUNT/$account/g" "$here/$1-policy.json"; }

for node in head worker; do
  aws iam create-role --role-name circuit-sweeps-$node --assume-role-policy-document "$(filled trust)"
  aws iam put-role-policy --role-name circuit-sweeps-$node --policy-name bucket --policy-document "$(filled bucket)"
  aws iam create-instance-profile --instance-profile-name circuit-sweeps-$node
  aws iam add-role-to-instance-profile --instance-profile-name circuit-sweeps-$node --role-name circuit-sweeps-$node
done
aws iam put-role-policy --role-name circuit-sweeps-head --policy-name workers --policy-document "$(filled head)"
# Spot instances need this role of Amazon's own; where it is there already, this says so and nothing is wrong.
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com || true
