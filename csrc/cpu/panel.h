// Layout of packed convolution weights, the same for every instruction set.
//
// Output channels are cut into panels of 64; the last panel is as many vectors of 16
// as it needs, or the PAIR panel when 8 channels or fewer are left. Inside a panel:
// source, tap, step of K, lane. A step of K is one unit (4 bytes: one float or two
// bf16) per lane; in the PAIR panel two units of each channel lie side by side.
#pragma once

#include <cstdint>

namespace slowfast {

struct PanelShape {
    int lanes;  // 4-byte lanes of a step: 16, 32, 48 or 64
    bool pair;
    int channels;  // output channels held
};

constexpr int kPanelChannels = 64;

static inline int64_t panel_count(int64_t cout) {
    return (cout + kPanelChannels - 1) / kPanelChannels;
}

static inline PanelShape panel_shape(int64_t cout, int64_t panel) {
    int64_t left = cout - panel * kPanelChannels;
    if (left >= kPanelChannels) return {kPanelChannels, false, kPanelChannels};
    int n = static_cast<int>(left);
    if (n <= 8) return {16, true, n};
    return {(n + 15) / 16 * 16, false, n};
}

// Steps of K of one tap of `channels` input channels stored in `bytes`-wide elements.
static inline int64_t panel_steps(int64_t channels, int bytes, bool pair) {
    int64_t per_step = (4 / bytes) * (pair ? 2 : 1);
    return (channels + per_step - 1) / per_step;
}

static inline int64_t panel_tap_bytes(const PanelShape& p, int64_t channels, int bytes) {
    return panel_steps(channels, bytes, p.pair) * p.lanes * 4;
}

// All panels of a convolution with `taps` taps of `cin` channels (each tap is rounded up to whole steps).
static inline int64_t panels_bytes(int64_t cout, int64_t taps, int64_t cin, int bytes) {
    int64_t total = 0;
    for (int64_t p = 0; p < panel_count(cout); ++p)
        total += taps * panel_tap_bytes(panel_shape(cout, p), cin, bytes);
    return total;
}

}  // namespace slowfast
