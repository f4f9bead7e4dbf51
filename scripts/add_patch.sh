#!/usr/bin/env bash
echo "Nothing to do: LiveTalk needs no patches and no clone of OmniAvatar; the folder OmniAvatar/ is part of this repository."
