// Which instruction set the kernels run on.
#pragma once

namespace slowfast {

enum class Isa : int { none = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

Isa isa_of_processor();  // best one of this processor
Isa isa_found();         // best one of this processor that this build has kernels for
Isa isa_current();       // the one in use
bool set_isa(Isa);       // false when the processor or the build lacks it

}  // namespace slowfast
