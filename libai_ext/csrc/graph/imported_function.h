// Replaces a function that a loaded library calls through its table of imported functions.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "oneflow/core/job/intra_job_mem_sharing_util.h"

namespace libai_ext {

// The entry for `symbol` in the table of `library`; null if it has none.
inline void** ImportedFunction(const link_map& library, const char* symbol) {
  const ElfW(Sym)* symbols = nullptr;
  const char* strings = nullptr;
  const ElfW(Rela)* entries = nullptr;
  size_t bytes = 0;
  for (const ElfW(Dyn)* part = library.l_ld; part->d_tag != DT_NULL; ++part) {
    const auto address = part->d_un.d_ptr;
    if (part->d_tag == DT_SYMTAB) { symbols = reinterpret_cast<const ElfW(Sym)*>(address); }
    if (part->d_tag == DT_STRTAB) { strings = reinterpret_cast<const char*>(address); }
    if (part->d_tag == DT_JMPREL) { entries = reinterpret_cast<const ElfW(Rela)*>(address); }
    if (part->d_tag == DT_PLTRELSZ) { bytes = part->d_un.d_val; }
  }
  for (const auto* entry = entries; bytes >= sizeof(*entry); ++entry, bytes -= sizeof(*entry)) {
    if (std::strcmp(strings + symbols[ELF64_R_SYM(entry->r_info)].st_name, symbol) == 0) {
      return reinterpret_cast<void**>(library.l_addr + entry->r_offset);
    }
  }
  return nullptr;
}

// Lets the library that contains `member` call `replacement` instead of what it imports as
// `symbol`. Other libraries still call the former function. Returns whether it could be done.
template<typename Function>
bool ReplaceImport(const void* member, const char* symbol, Function* replacement) {
  Dl_info found;
  link_map* library = nullptr;
  if (!dladdr1(member, &found, reinterpret_cast<void**>(&library), RTLD_DL_LINKMAP)) {
    return false;
  }
  void** entry = ImportedFunction(*library, symbol);
  if (!entry) { return false; }
  const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto page = reinterpret_cast<uintptr_t>(entry) / page_bytes * page_bytes;
  if (mprotect(reinterpret_cast<void*>(page), page_bytes, PROT_READ | PROT_WRITE) != 0) {
    return false;
  }
  *entry = reinterpret_cast<void*>(replacement);
  return true;
}

// The same for what OneFlow imports.
template<typename Function>
bool ReplaceImportOfOneFlow(const char* symbol, Function* replacement) {
  const auto member = &oneflow::IntraJobMemSharingUtil::InferMemBlockId4MemReusedRegst;
  return ReplaceImport(reinterpret_cast<void*>(member), symbol, replacement);
}

// The same for a function that the library exports, and calls as if it were imported.
template<typename Function>
bool ReplaceInOwnLibrary(Function* function, Function* replacement) {
  const void* member = reinterpret_cast<void*>(function);
  Dl_info found;
  return dladdr(member, &found) && found.dli_sname &&
         ReplaceImport(member, found.dli_sname, replacement);
}

}  // namespace libai_ext
