// The one file to compile. OneFlow's headers alone take four seconds, so all ops share them: the
// whole library takes twenty seconds this way, and more than a minute of CPU time with a file each.
#include "graph/share_memory.cpp"
#include "graph/sleep_in_waits.cpp"
#include "ops/adam.cpp"
#include "ops/attention.cpp"
#include "ops/copy.cpp"
#include "ops/elementwise.cpp"
#include "ops/gelu.cpp"
#include "ops/layer_norm.cpp"
#include "ops/matmul.cpp"
#include "ops/reduce.cpp"
#include "ops/register.cpp"
#include "ops/resample.cpp"
