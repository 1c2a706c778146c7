// What the per-instruction-set kernels take and the table through which they are reached.
//
// Plain structs and function pointers only: this header is compiled for every instruction set.
#pragma once

#include <cstdint>

namespace slowfast {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

// One channels-last input of a convolution, with the window that slides over it. Strides in bytes.
struct ConvSource {
    const char* data;
    int64_t stride_n, stride_t, stride_h, stride_w;
    int64_t t, h, w;   // extent
    int64_t channels;  // per tap
    int64_t kernel[3], stride[3], padding[3], dilation[3];
};

// Entries behind a convolution's address table: a tile's rows are prefetched one tile ahead.
constexpr int kTableSlack = 8;

// out = [relu](sum over sources of conv(source) + shift + residual); one or two sources.
struct ConvParams {
    DType dtype;
    ConvSource source[2];
    int sources;
    int64_t n, t, h, w;  // output extent
    int64_t channels;    // output channels
    const char* packed;  // panels, see panel.h
    const float* shift;
    const char* residual;     // rows at residual_stride bytes, in output order
    int64_t residual_stride;  // bytes per pixel
    char* out;
    int64_t out_stride;  // bytes per pixel
    bool relu;
    const char* zeros;  // at least max(source channels) zero elements
};

// A residual block: conv_a (k x 1 x 1) -> conv_b (1 x 3 x 3, stride, dilation) -> conv_c (1 x 1 x 1), plus
// the identity or a strided 1 x 1 x 1 shortcut packed as a second source of conv_c.
struct BlockParams {
    DType dtype;
    const char* x;
    int64_t x_stride[4];  // n, t, h, w in bytes
    int64_t n, t, h, w;   // input extent; time is not strided
    int64_t cin, cmid, cout;
    int64_t kernel_t, stride, dilation;
    const char *packed_a, *packed_b, *packed_c;
    const float *shift_a, *shift_b, *shift_c;
    bool shortcut;  // convolution shortcut (else identity)
    char* out;
    int64_t out_stride[4];
    int64_t ho, wo;
};

// 3x1x1 (F(4, 3) along time) or 1x3x3 (F(4x4, 3x3)) convolution, stride 1, "same" padding, float32.
struct WinogradParams {
    bool spatial;
    const char* x;
    int64_t x_stride[4];  // n, t, h, w in bytes
    int64_t n, t, h, w, cin, cout;
    int64_t tiles_t, tiles_h, tiles_w;  // tiles of 4 outputs along each axis
    float* v;                           // transformed input: planes of [rows][cin]
    int64_t v_plane;                    // floats from plane to plane
    const char* packed;                 // transformed weights, one tap per plane
    const float* shift;
    const char* residual;
    int64_t residual_stride, out_stride;  // bytes per pixel
    char* out;
    bool relu;
};

// Lateral convolution of k = 2 alpha - 1 frames with stride alpha, float32, in polyphase form.
struct LateralParams {
    const char* x;
    int64_t stride_n, stride_t, stride_w;  // bytes; a frame's pixels are a run at stride_w
    int64_t cin, cout, alpha, t_out;
    const char *packed_sum, *packed_first, *packed_second;  // weights of the three products, see lateral.cpp
    const float* shift;
    char* out;
    int64_t out_stride, out_stride_t;  // bytes per pixel and frame
    bool relu;
};

// Output frames 2 * pair and the one after it of clip n, pixels [m0, m1).
struct LateralUnit {
    int64_t n, pair, m0, m1;
};

// Convolution with few input channels (a video's 3) over a padded copy of the input, then ReLU and max-pool.
struct StemParams {
    DType dtype;
    const char* padded;  // [n][t][hp][wp][cin], zero borders in h and w
    int64_t n, t, hp, wp, cin;
    int64_t kernel[3], stride[3], pad_t;
    int64_t to, hc, wc;  // convolution output
    int64_t channels;
    const char* packed;  // one tap per (kt, kh) of kw * cin channels
    const float* shift;
    bool relu, pool;
    char* out;           // [n][to][ho][wo] pixels
    int64_t out_stride;  // bytes per pixel
    int64_t ho, wo;
};

struct PadParams {
    DType from, to;
    const char* x;
    int64_t x_stride[5];  // n, c, t, h, w in bytes
    int64_t n, c, t, h, w;
    int64_t pad_h, pad_w, hp, wp;
    char* out;
};

enum class FastInput : int { rgb = 0, gray = 1, time_diff = 2 };

// frames [n][t][h][w][3] uint8 -> normalised channels-last clips, slow [n][slow_t][h][w][3] and
// fast [n][t][h][w][3 or 1].
struct PackParams {
    DType dtype;
    FastInput fast_input;
    const uint8_t* frames;
    int64_t stride[5];  // n, t, h, w, c in bytes
    int64_t t, h, w, slow_t;
    bool reverse;              // colour channels in the order B, G, R
    float scale[3], shift[3];  // of the clips' channels: y = x * scale + shift
    float gray_scale[3], gray_shift;
    // Frame -> its first position in the slow clip, position -> the frame's next one; -1 ends the chain.
    const int64_t *slow_first, *slow_next;
    char *slow, *fast;
};

// Average of a channels-last map over all frames and a window_h x window_w window that slides over it.
struct HeadPoolParams {
    DType dtype;
    const char* x;
    int64_t pixel;  // bytes per pixel
    int64_t channels, t, h, w;
    int64_t window_h, window_w;
    bool merge;          // average over the windows, too
    float* out;          // [n][window][out_stride]
    int64_t out_stride;  // floats per window
};

// out[rows][classes] = x[rows][channels] times weight[classes][channels], plus bias.
struct HeadLinearParams {
    DType dtype;  // of the weight
    const float* x;
    const char* weight;
    int64_t weight_stride;  // bytes per class
    const float* bias;      // or null
    int64_t channels, classes;
    float* out;
};

struct RoiAlignParams;  // roi.h
struct RoiHeadParams;

struct KernelTable {
    const char* name;
#define SLOWFAST_KERNEL(result, name, arguments) result(*name) arguments;
#include "cpu/kernels.inc"
};

const KernelTable& kernels();  // of the instruction set in use

}  // namespace slowfast
