#include "../arithmetic/copy.h"

#include "kernel_util.h"

namespace libai_ext {
namespace {

void ComputeCopy(Context* ctx) { Copy(Size(ctx, "out"), Input(ctx, "in"), Output(ctx, "out")); }

void ComputeTranspose(Context* ctx) {
  Permute(Dims(ctx, "input"), ctx->Attr<std::vector<int32_t>>("perm"), Input(ctx, "input"),
          Output(ctx, "output"));
}

// Calls cut(rows, cols, start, length) for the axis that is cut, seen as the columns of a matrix.
// The attribute "length" is not read: it is that of all ranks, over which the axis may be split.
template<typename Cut>
void AlongAxis(Context* ctx, const char* whole, const char* part, const Cut& cut) {
  const ShapeView shape = Shape(ctx, whole);
  const int64_t axis = ctx->Attr<int64_t>("dim");
  cut(shape.Count(0, axis), shape.Count(axis), ctx->Attr<int64_t>("start") * shape.Count(axis + 1),
      Shape(ctx, part).Count(axis));
}

void ComputeNarrow(Context* ctx) {
  AlongAxis(ctx, "in", "out", [&](int64_t rows, int64_t cols, int64_t start, int64_t length) {
    Narrow(rows, cols, start, length, Input(ctx, "in"), Output(ctx, "out"));
  });
}

void ComputeNarrowGrad(Context* ctx) {
  AlongAxis(ctx, "dx", "dy", [&](int64_t rows, int64_t cols, int64_t start, int64_t length) {
    NarrowGrad(rows, cols, start, length, Input(ctx, "dy"), Output(ctx, "dx"));
  });
}

// Calls copy(part, rows, cols, start) for each tensor of `parts`. They are columns of the matrix
// that `whole` is if its axes from `axis` on are one; `start` is a part's first column.
template<typename Parts, typename CopyPart>
void EachPart(Context* ctx, const char* whole, const Parts& parts, const CopyPart& copy) {
  const ShapeView shape = Shape(ctx, whole);
  const int64_t axis = ctx->Attr<int64_t>("axis");
  int64_t start = 0;
  for (const auto& [name, index] : parts) {
    auto* const part = Tensor(ctx, name, index);
    const int64_t cols = part->shape_view().Count(axis);
    copy(part, shape.Count(0, axis), cols, start);
    start += cols;
  }
}

void ComputeConcat(Context* ctx) {
  const int64_t row = Shape(ctx, "out").Count(ctx->Attr<int64_t>("axis"));
  EachPart(ctx, "out", ctx->inputs(), [&](auto* part, int64_t rows, int64_t cols, int64_t start) {
    CopyRows(rows, cols, part->template dptr<float>(), cols, Output(ctx, "out") + start, row);
  });
}

void ComputeSplitLike(Context* ctx) {
  const int64_t row = Shape(ctx, "in").Count(ctx->Attr<int64_t>("axis"));
  EachPart(ctx, "in", ctx->outputs(), [&](auto* part, int64_t rows, int64_t cols, int64_t start) {
    CopyRows(rows, cols, Input(ctx, "in") + start, row, part->template mut_dptr<float>(), cols);
  });
}

// A tensor seen as [batch, rows, cols], where `ids` [batch..., n] says which rows.
struct RowBatch {
  int64_t batch, rows, cols;
};

RowBatch AsRowBatch(Context* ctx, const char* name, const char* ids) {
  const ShapeView shape = Shape(ctx, name);
  const int64_t axis = Shape(ctx, ids).NumAxes() - 1;
  return {shape.Count(0, axis), shape.At(axis), shape.Count(axis + 1)};
}

template<typename Index>
const Index* CheckedIds(Context* ctx, const char* name, int64_t rows) {
  const Index* const ids = Input<Index>(ctx, name);
  for (int64_t i = 0; i < Size(ctx, name); ++i) {
    CHECK(ids[i] >= 0 && ids[i] < rows)
        << name << "[" << i << "] is " << ids[i] << ", not one of " << rows << " rows";
  }
  return ids;
}

template<typename Index>
void ComputeBatchGather(Context* ctx) {
  const RowBatch in = AsRowBatch(ctx, "in", "indices"), out = AsRowBatch(ctx, "out", "indices");
  GatherRows(in.batch, in.rows, out.rows, in.cols, Input(ctx, "in"),
             CheckedIds<Index>(ctx, "indices", in.rows), Output(ctx, "out"));
}

template<typename Index>
void ComputeBatchScatterAdd(Context* ctx) {
  const RowBatch in = AsRowBatch(ctx, "data", "segment_ids"),
                 out = AsRowBatch(ctx, "out", "segment_ids");
  ScatterAddRows(in.batch, in.rows, out.rows, in.cols, Input(ctx, "data"),
                 CheckedIds<Index>(ctx, "segment_ids", out.rows), Output(ctx, "out"));
}

template<typename Index>
void RegisterGather(DataType type) {
  Register<ComputeBatchGather<Index>>("batch_gather", OnCpu("out") && OnCpu("indices", type));
  Register<ComputeBatchScatterAdd<Index>>("unsorted_batch_segment_sum",
                                          OnCpu("out") && OnCpu("segment_ids", type));
}

}  // namespace

void RegisterCopy() {
  // On several ranks, LiBai's Linear copies its input: `x.to_global(grad_sbp=x.sbp)`.
  Register<ComputeCopy>("copy", OnCpu("out"));
  Register<ComputeCopy>("reshape", OnCpu("out"));
  Register<ComputeTranspose>("transpose", OnCpu("input"));
  Register<ComputeNarrow>("narrow", OnCpu("in"));
  Register<ComputeNarrowGrad>("narrow_grad", OnCpu("dx"));
  Register<ComputeConcat>("concat", OnCpu("out"));
  Register<ComputeSplitLike>("split_like", OnCpu("in"));
  RegisterGather<int32_t>(DataType::kInt32);
  RegisterGather<int64_t>(DataType::kInt64);
}

}  // namespace libai_ext
