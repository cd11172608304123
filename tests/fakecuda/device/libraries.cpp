// cuBLAS, cuDNN, cuRAND and NCCL, found before the real ones since this library is loaded first.
//
// Their other functions are weak ones that say that they are not implemented (see build.py).
// Collectives do not wait for their peers; what would come from them is a copy of one's own.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace {

// 0, or 1: an error of all these libraries.
int called(const char* function) { return fakecuda::enter(function) ? 1 : 0; }

int called(const char* function, const char* type) {
  char text[88];
  std::snprintf(text, sizeof text, "%s %s", function, type);
  return called(text);
}

const char* name_of_cuda_type(int type) {
  switch (type) {
    case 0: return "float";
    case 1: return "double";
    case 2: return "half";
    case 14: return "bfloat16";
    default: return "another type";
  }
}

int create(const char* function, void** handle) {
  if (const int error = called(function)) return error;
  *handle = std::calloc(1, 1);
  return 0;
}

}  // namespace

#define DOES_NOTHING(name) \
  int name() { return called(#name); }
#define CREATES(name) \
  int name(void** handle) { return create(#name, handle); }
#define DESTROYS(name) \
  int name(void* handle) { return std::free(handle), called(#name); }

extern "C" {

// cuBLAS

CREATES(cublasCreate_v2)
DESTROYS(cublasDestroy_v2)
DOES_NOTHING(cublasSetStream_v2)
DOES_NOTHING(cublasSetMathMode)
DOES_NOTHING(cublasSetWorkspace_v2)
int cublasGetMathMode(void*, int* mode) { return *mode = 0; }
int cublasGetVersion_v2(void*, int* version) { return *version = 111103, 0; }

// `type` is that of the first matrix.
int cublasGemmEx(void*, int, int, int, int, int, const void*, const void*, int type) {
  return called("cublasGemmEx", name_of_cuda_type(type));
}
int cublasGemmBatchedEx(void*, int, int, int, int, int, const void*, const void*, int type) {
  return called("cublasGemmBatchedEx", name_of_cuda_type(type));
}
int cublasGemmStridedBatchedEx(void*, int, int, int, int, int, const void*, const void*, int type) {
  return called("cublasGemmStridedBatchedEx", name_of_cuda_type(type));
}

CREATES(cublasLtCreate)
DESTROYS(cublasLtDestroy)

// cuDNN

CREATES(cudnnCreate)
DESTROYS(cudnnDestroy)
DOES_NOTHING(cudnnSetStream)
int cudnnGetProperty(int part, int* value) {
  const int version[] = {8, 5, 0};
  return *value = version[part], 0;
}
const char* cudnnGetErrorString(int) { return "an error of the fake cuDNN"; }
CREATES(cudnnCreateTensorDescriptor)
DESTROYS(cudnnDestroyTensorDescriptor)
DOES_NOTHING(cudnnSetTensor4dDescriptor)
DOES_NOTHING(cudnnSetTensorNdDescriptor)
DOES_NOTHING(cudnnDeriveBNTensorDescriptor)
DOES_NOTHING(cudnnBatchNormalizationForwardInference)
DOES_NOTHING(cudnnBatchNormalizationForwardTraining)
DOES_NOTHING(cudnnBatchNormalizationBackward)
}  // extern "C"

// NCCL

namespace {

struct Communicator {
  int rank, ranks;
};

struct UniqueId {
  char bytes[128];
};

// By the numbers of ncclDataType_t.
constexpr struct {
  const char* name;
  size_t size;
} kNcclTypes[] = {{"int8", 1},   {"uint8", 1}, {"int32", 4}, {"uint32", 4}, {"int64", 8},
                  {"uint64", 8}, {"half", 2},  {"float", 4}, {"double", 8}, {"bfloat16", 2}};

// Calls between ncclGroupStart and ncclGroupEnd are one launch.
thread_local int open_groups = 0, calls_in_group = 0;

// Counts a call and copies what this rank gives to each place where a rank's part would come.
int collective(const char* function, size_t number, int type, const char* from, char* to,
               int parts = 1) {
  const size_t bytes = number * kNcclTypes[type].size;
  if (const int error = called(function, kNcclTypes[type].name)) return error;
  fakecuda::count("collective", function, bytes);
  if (open_groups > 0) ++calls_in_group;
  else fakecuda::count("launch", "nccl");
  for (int part = 0; from && to && part < parts; ++part, to += bytes)
    if (from != to) std::memmove(to, from, bytes);
  return 0;
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) { return *version = 21210, 0; }
const char* ncclGetErrorString(int) { return "an error of the fake NCCL"; }
DOES_NOTHING(ncclGetUniqueId)
int ncclCommInitRank(Communicator** made, int ranks, UniqueId, int rank) {
  *made = new Communicator{rank, ranks};
  return called("ncclCommInitRank");
}
int ncclCommDestroy(Communicator* communicator) {
  delete communicator;
  return called("ncclCommDestroy");
}
int ncclGroupStart() {
  ++open_groups;
  return called("ncclGroupStart");
}
int ncclGroupEnd() {
  if (--open_groups == 0 && calls_in_group > 0) {
    calls_in_group = 0;
    fakecuda::count("launch", "nccl");
  }
  return called("ncclGroupEnd");
}

int ncclAllReduce(char* from, char* to, size_t number, int type, int, void*, void*) {
  return collective("ncclAllReduce", number, type, from, to);
}
int ncclReduce(char* from, char* to, size_t number, int type, int, int, void*, void*) {
  return collective("ncclReduce", number, type, from, to);
}
int ncclBroadcast(char* from, char* to, size_t number, int type, int, void*, void*) {
  return collective("ncclBroadcast", number, type, from, to);
}
int ncclReduceScatter(char* from, char* to, size_t number, int type, int, Communicator* c, void*) {
  from += c->rank * number * kNcclTypes[type].size;
  return collective("ncclReduceScatter", number, type, from, to);
}
int ncclAllGather(char* from, char* to, size_t number, int type, Communicator* c, void*) {
  return collective("ncclAllGather", number, type, from, to, c->ranks);
}
int ncclSend(char*, size_t number, int type, int, void*, void*) {
  return collective("ncclSend", number, type, nullptr, nullptr);
}
int ncclRecv(char*, size_t number, int type, int, void*, void*) {
  return collective("ncclRecv", number, type, nullptr, nullptr);
}

}  // extern "C"
