// The sizes of a call, for files that do without ATen as well.
#pragma once

#include <cstdint>

namespace dinox {

// B images, S tokens (all levels, flattened), H heads, C channels per head, Q queries, L levels, P points per level.
struct Sizes {
  int64_t images, tokens, heads, channels, queries, levels, points;
};

// One level of the feature pyramid: its size and the index of its first token.
struct Level {
  int32_t height, width, start;
};

}  // namespace dinox
