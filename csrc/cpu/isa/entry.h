// The kernels of one instruction set, by name; table.cpp puts them into its KernelTable.
#pragma once

#include "cpu/kernels.h"

namespace slowfast::SLOWFAST_ISA {

void conv_item(const ConvArgs&, int64_t m0, int64_t m1, int64_t p0, int64_t p1, char* scratch);
void block_item(const BlockArgs&, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch);
int64_t block_scratch(const BlockArgs&);
void stem_item(const StemArgs&, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch);
int64_t stem_scratch(const StemArgs&);
void pad_item(const PadArgs&, int64_t n, int64_t t);
void stem_planar_item(const StemArgs&, int64_t n, int64_t t, int64_t h0, int64_t h1, char* scratch);
int64_t stem_planar_scratch(const StemArgs&);
void stem_planar_layout(const PadArgs&, int64_t n, int64_t t);
void winograd_input_item(const WinogradArgs&, int64_t r0, int64_t r1);
void winograd_gemm_item(const WinogradArgs&, int64_t r0, int64_t r1, int64_t panel, char* scratch);
void pack_item(const PackArgs&, int64_t n, int64_t t, int64_t h0, int64_t h1);
void head_pool_item(const HeadPoolArgs&, int64_t n, int64_t c0, int64_t c1, char* scratch);
void head_linear_item(const HeadLinearArgs&, int64_t r0, int64_t r1, int64_t j0, int64_t j1);
void roi_align_item(const RoiAlignArgs&, int64_t roi, int64_t frame, int64_t c0, int64_t c1);
void roi_align_bwd_item(const RoiAlignArgs&, int64_t clip, int64_t frame, int64_t c, int64_t y0, int64_t y1,
                        char* scratch);
void roi_reduce_item(const RoiHeadArgs&, int pathway, int64_t cell0, int64_t cell1, char* scratch);
void roi_max_item(const RoiHeadArgs&, int pathway, int64_t slice, int64_t i0, int64_t i1);
void roi_scatter_item(const RoiHeadArgs&, int64_t slice);
void roi_spread_item(const RoiHeadArgs&, int64_t cell0, int64_t cell1);
void lateral_unit(const LateralArgs&, const LateralUnit&, const LateralUnit* next, char* scratch);
int64_t lateral_scratch(const LateralArgs&, int64_t rows);

}  // namespace slowfast::SLOWFAST_ISA
