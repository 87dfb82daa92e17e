#!/usr/bin/env bash
# As setup.sh, for llama.cpp's server (requirements-llama.txt), which takes a C++ compiler and minutes.
exec "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements-llama.txt
