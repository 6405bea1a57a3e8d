#!/bin/sh
# The peers that are no crates, from Debian or Ubuntu. Each that is absent is skipped by name.
set -eu
apt-get update
apt-get install -y --no-install-recommends \
    build-essential libkyotocabinet16v5 libtkrzw1 libtdb1 libgdbm6 librocksdb7.8
