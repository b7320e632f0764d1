// A pretend accelerator: memory of the host under another device's name, PyTorch's PrivateUse1. What is computed on it
// the CPU's kernels compute, in place, on tensors that borrow its memory; tensors of two devices do not mix.
//
// As on CUDA, the host waits for the device where it reads or copies what is there. A copy into page-locked memory that
// it does not wait for arrives late, all bits 1 until then: when the host waits for an event behind it, or the device.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <set>

// Declared here, for their header would double the time that this file takes to compile.
namespace at::autocast {
TORCH_API ScalarType get_autocast_dtype(DeviceType);
TORCH_API Tensor cached_cast(ScalarType, const Tensor&, DeviceType);
}  // namespace at::autocast

namespace {

using at::Tensor;
using c10::DataPtr;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::OperatorHandle;
using c10::Storage;
using torch::jit::Stack;

constexpr auto TYPE = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(TYPE, 0);

std::atomic<bool> on{false};

// What happens is told to whoever watches: an operator "runs", the host "waits" for one, bytes go "there" or "back".
using Watcher = void (*)(const char* what, const char* where, int64_t bytes);
std::atomic<Watcher> watcher{nullptr};

void tell(const char* what, const std::string& where, int64_t bytes = 0) {
  if (const auto to = watcher.load()) to(what, where.c_str(), bytes);
}

// ---- memory

void* reserved(size_t bytes) { return bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr; }

struct Memory : c10::Allocator {
  DataPtr allocate(size_t bytes) override {
    void* data = reserved(bytes);
    return {data, data, &std::free, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} memory;
REGISTER_ALLOCATOR(TYPE, &memory);

struct PageLocked final : Memory {
  std::map<const char*, size_t> blocks;
  mutable std::mutex lock;

  DataPtr allocate(size_t bytes) override;
  bool holds(const void* data) const {
    std::lock_guard guard(lock);
    const auto next = blocks.upper_bound(static_cast<const char*>(data));
    if (next == blocks.begin()) return false;
    const auto& [start, bytes] = *std::prev(next);
    return static_cast<const char*>(data) < start + bytes;
  }
};
PageLocked& page_locked = *new PageLocked;  // never destroyed: tensors may live until the process ends

DataPtr PageLocked::allocate(size_t bytes) {
  auto* data = static_cast<char*>(reserved(bytes));
  std::lock_guard guard(lock);
  if (data) blocks[data] = bytes;
  const auto release = [](void* data) {
    std::lock_guard guard(page_locked.lock);
    page_locked.blocks.erase(static_cast<char*>(data));
    std::free(data);
  };
  return {data, data, release, c10::kCPU};
}

// ---- tensors of one device over the memory of another's

DataPtr kept(const Storage& storage, c10::Device device) {
  auto* owner = new Storage(storage);
  return {owner->mutable_data(), owner, [](void* owner) { delete static_cast<Storage*>(owner); }, device};
}

Tensor shaped(Tensor tensor, const Tensor& like) {
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

Tensor over(const Tensor& tensor, DispatchKey key, c10::Device device) {
  const auto& storage = tensor.storage();
  auto* allocator = c10::GetAllocator(device.type());
  Storage same(Storage::use_byte_size_t(), storage.nbytes(), kept(storage, device), allocator, /*resizable=*/true);
  return shaped(at::detail::make_tensor<c10::TensorImpl>(std::move(same), DispatchKeySet(key), tensor.dtype()), tensor);
}

Tensor view(const Tensor& of, const Tensor& like) {  // with the keys of autograd and of inference mode that `of` has
  Storage storage(of.storage());
  const auto kind = c10::TensorImpl::VIEW;
  return shaped(at::detail::make_tensor<c10::TensorImpl>(kind, std::move(storage), of.key_set(), like.dtype()), like);
}

Tensor host(const Tensor& tensor) { return over(tensor, DispatchKey::CPU, c10::kCPU); }

template <class Change>
void change_tensors(IValue& value, const Change& change) {
  if (value.isTensor()) {
    value = change(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> changed;
    for (const auto& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    value = changed;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    for (const auto& tensor : value.toOptionalTensorVector())
      changed.push_back(tensor ? std::optional(change(*tensor)) : std::nullopt);
    value = changed;
  }
}

IValue* last(Stack* stack, size_t count) { return stack->data() + stack->size() - count; }

// ---- operators: the CPU's

void on_host(const OperatorHandle& op, Stack* stack) {
  std::vector<std::pair<Tensor, Tensor>> lent;  // the device's, and the CPU's in its place
  const auto lend = [&](const Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != TYPE) return tensor;
    return lent.emplace_back(tensor, host(tensor)).second;
  };
  const auto count = op.schema().arguments().size();
  for (auto* value = last(stack, count); value != stack->data() + stack->size(); value++) {
    if (value->isDevice() && value->toDevice().type() == TYPE) *value = c10::Device(c10::kCPU);
    change_tensors(*value, lend);
  }
  {
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard uncast(DispatchKey::AutocastCPU);
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  }
  for (const auto& [mine, its] : lent) {  // what an operator resized, such as `out`, is resized here, too
    if (its.storage().data() != mine.storage().data()) {
      mine.storage().set_data_ptr_noswap(kept(its.storage(), DEVICE));
      mine.storage().set_nbytes(its.storage().nbytes());
    }
    if (its.sizes() != mine.sizes() || its.strides() != mine.strides() || its.storage_offset() != mine.storage_offset())
      mine.unsafeGetTensorImpl()->set_sizes_and_strides(its.sizes(), its.strides(), its.storage_offset());
  }
  const auto give_back = [&](const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (const auto& [mine, its] : lent)
      if (its.is_same(tensor)) return mine;
    for (const auto& [mine, its] : lent)
      if (its.storage().is_alias_of(tensor.storage())) return view(mine, tensor);
    return over(tensor, DispatchKey::PrivateUse1, DEVICE);
  };
  for (auto* value = last(stack, op.schema().returns().size()); value != stack->data() + stack->size(); value++)
    change_tensors(*value, give_back);
}

// ---- time

constexpr auto ALL = std::numeric_limits<int64_t>::max();

struct Late {
  int64_t number;
  Tensor from, to;
};
auto& underway = *new std::deque<Late>;
int64_t begun = 0;
std::mutex clock_lock;

void finish(int64_t number = ALL) {  // the copies up to this one
  std::vector<Late> done;  // let go of behind the lock: Python's own lock may be needed for it
  std::lock_guard guard(clock_lock);
  at::AutoDispatchBelowADInplaceOrView below;
  for (; !underway.empty() && underway.front().number <= number; underway.pop_front()) {
    underway.front().to.copy_(underway.front().from);
    done.push_back(std::move(underway.front()));
  }
}

void wait(const std::string& where) {
  finish();
  tell("waits", where);
}

struct Event {
  int64_t number;  // of the last copy before it
  bool asked = false;
};

// Operators whose result's size or value the host has to know, by CUDA's implementation.
bool waits(const std::string& name, const IValue* arguments, size_t count) {
  static const std::set<std::string> always = {
      "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
      "aten::bincount", "aten::_unique", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::unique_dim_consecutive"};
  if (name == "aten::repeat_interleave") return arguments[count - 1].isNone();  // output_size
  if (always.count(name)) return true;
  // Before `index` runs, the host's indices were copied and a mask's found by `nonzero`, which are seen by themselves.
  if (name != "aten::_index_put_impl_") return false;
  const bool single = arguments[2].toTensor().dim() == 0;  // fills where a mask is, and asks nothing
  for (const auto& index : arguments[1].toOptionalTensorVector()) {
    if (!index || !index->defined()) continue;
    const bool mask = index->scalar_type() == at::kBool || index->scalar_type() == at::kByte;
    if (index->is_cpu() || (mask && !single)) return true;
  }
  return false;
}

void refuse_mixed(const OperatorHandle& op, const IValue* arguments, size_t count) {
  const auto check = [&](const Tensor& tensor) {
    TORCH_CHECK(!tensor.defined() || tensor.device().type() == TYPE || tensor.dim() == 0,
                "Expected all tensors to be on the same device, but found at least two devices, ", DEVICE, " and ",
                tensor.device(), "! (", op.operator_name(), ", a tensor of shape ", tensor.sizes(), ")");
  };
  for (size_t place = 0; place < count; place++) {  // indices, which are optional tensors in a list, may lie elsewhere
    if (arguments[place].isTensor()) check(arguments[place].toTensor());
    if (arguments[place].isTensorList())
      for (const auto& tensor : arguments[place].toTensorVector()) check(tensor);
  }
}

void any(const OperatorHandle& op, Stack* stack) {
  const auto count = op.schema().arguments().size();
  const auto* arguments = last(stack, count);
  refuse_mixed(op, arguments, count);
  tell("runs", c10::toString(op.operator_name()));
  if (waits(op.operator_name().name, arguments, count)) wait(c10::toString(op.operator_name()));
  on_host(op, stack);
}

// ---- operators that differ

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  const bool there = from.is_cpu(), back = to.is_cpu();
  const bool late = back && non_blocking && page_locked.holds(to.storage().data());
  const auto name = there ? "copy to the device" : "copy to the host";
  if (there || back) {
    tell(there ? "there" : "back", name, to.nbytes());
    if (back ? !late : !non_blocking) wait(name);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard uncast(DispatchKey::AutocastCPU);
  const auto source = there ? from : host(from), target = back ? to : host(to);
  if (!late) {
    target.copy_(source);
  } else {
    std::lock_guard guard(clock_lock);
    underway.push_back({++begun, source.clone(), target});
    if (target.is_contiguous()) std::memset(target.mutable_data_ptr(), 0xff, target.nbytes());
  }
  return to;
}

Tensor& set_storage(Tensor& self, Storage source, int64_t offset, at::IntArrayRef sizes, at::IntArrayRef strides) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return self;
}
Tensor& set_whole_storage(Tensor& self, Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {count}, {1});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

OperatorHandle named(const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); }

void convolution(const OperatorHandle&, Stack* stack) {
  tell("runs", "aten::convolution");
  on_host(named("aten::convolution"), stack);
}
void convolution_backward(const OperatorHandle&, Stack* stack) {
  tell("runs", "aten::convolution_backward");
  const c10::List<int64_t> channels({last(stack, 10)->toTensor().size(1)});
  stack->insert(stack->end() - 7, channels);  // the size of the bias, behind the weight
  on_host(named("aten::convolution_backward"), stack);
}

int64_t attention_by_products(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                              std::optional<double>, bool) {
  return 0;
}

bool compatible(const Tensor&, const Tensor&) { return true; }  // parameters stay the same objects when they move

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&any>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", copy_from);
  library.impl("set_.source_Storage", set_whole_storage);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("set_.source_Tensor", set_tensor);
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
  library.impl("_fused_sdp_choice", attention_by_products);
  library.impl("_has_compatible_shallow_copy_type", compatible);
}

// ---- autocast, by the policies of CUDA

enum Policy { LOWER, FLOAT, FLOAT_RESULT, WIDEST };

bool is_cast(const Tensor& tensor) {
  const bool here = tensor.defined() && tensor.device().type() == TYPE;
  return here && tensor.is_floating_point() && tensor.scalar_type() != at::kDouble;
}

template <Policy policy>
void cast(const OperatorHandle& op, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard once(DispatchKey::AutocastPrivateUse1);
  const auto& described = op.schema().arguments();
  auto* arguments = last(stack, described.size());
  auto to = policy == FLOAT ? at::kFloat : at::autocast::get_autocast_dtype(TYPE);
  const auto widen = [&](const Tensor& tensor) {
    if (is_cast(tensor) && tensor.scalar_type() == at::kFloat) to = at::kFloat;
    return tensor;
  };
  const auto change = [&](const Tensor& tensor) { return at::autocast::cached_cast(to, tensor, TYPE); };
  for (size_t place = 0; place < described.size() && policy != LOWER; place++) {
    auto& value = arguments[place];
    if (policy == WIDEST) change_tensors(value, widen);
    const bool asks = policy == FLOAT_RESULT && described[place].name() == "dtype" && value.isNone();
    if (asks && is_cast(arguments[0].toTensor())) value = static_cast<int64_t>(at::kFloat);
  }
  for (size_t place = 0; place < described.size() && policy != FLOAT_RESULT; place++)
    change_tensors(arguments[place], change);
  op.callBoxed(stack);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

// ---- the device itself

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = TYPE;
  static c10::Stream only() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return TYPE; }
  c10::DeviceIndex deviceCount() const noexcept override { return on ? 1 : 0; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only(); }
  c10::Stream getNewStream(c10::Device, int) const override { return only(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { wait("stream"); }
  void synchronizeDevice(c10::DeviceIndex) const override { wait("device"); }

  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    std::lock_guard guard(clock_lock);
    delete static_cast<Event*>(*event);
    *event = new Event{begun};
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void* event) const override {  // the first answer is: not yet
    auto* found = static_cast<Event*>(event);
    if (!found || std::exchange(found->asked, true)) {
      finish(found ? found->number : 0);
      return true;
    }
    return false;
  }
  void synchronizeEvent(void* event) const override {
    finish(event ? static_cast<Event*>(event)->number : 0);
    tell("event", "event");
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return on; }
  c10::DeviceIndex deviceCount() const override { return on ? 1 : 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return on; }
  bool isPinnedPtr(const void* data) const override { return page_locked.holds(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    TORCH_CHECK(on, "Cannot access accelerator device when none is available.");
    return &page_locked;
  }
  // Random numbers are the CPU's: dropout draws on the device what it draws there.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};
const bool hooked = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

}  // namespace

// ---- what Python calls

extern "C" void pretend_switch(bool to) {
  if (!to) finish();
  on = to;
}

extern "C" void pretend_watch(Watcher by) { watcher = by; }

extern "C" void pretend_autocast(const char* op, int policy) {
  static torch::Library library(torch::Library::IMPL, "aten", DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  using torch::CppFunction;
  library.impl(op, policy == LOWER        ? CppFunction::makeFromBoxedFunction<&cast<LOWER>>()
                   : policy == FLOAT        ? CppFunction::makeFromBoxedFunction<&cast<FLOAT>>()
                   : policy == FLOAT_RESULT ? CppFunction::makeFromBoxedFunction<&cast<FLOAT_RESULT>>()
                                            : CppFunction::makeFromBoxedFunction<&cast<WIDEST>>());
}
