// Streams, events and graphs. Work waits in queues until somebody synchronises; then, where EMU_SEED is not 0, the next piece
// comes from any stream that no event holds back.
#include <algorithm>
#include <chrono>

#include "cuda/emu/memory.h"
#include "cuda/emu/runtime.h"

using namespace deem::emu;
using deem::str;

namespace {

struct Queue;
struct Mark {  // the first `position` pieces of a queue
  std::shared_ptr<Queue> queue;
  uint64_t position;
};
struct Piece {
  Work work;
  std::vector<Mark> after;
};

struct Node {
  Work work;
  std::vector<size_t> after;
};
struct Capture {
  std::vector<Node> nodes;
  std::vector<Queue*> streams;
  Queue* origin;
  cudaStreamCaptureMode mode;
  std::string broken;  // why; empty: it is not
};

struct Queue {
  std::deque<Piece> pieces;
  uint64_t issued = 0, done = 0;
  std::vector<Mark> after;  // of the next piece
  bool blocking = true;     // ordered with the default stream
  int priority = 0;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> last;  // nodes that the next one of the capture follows
};

}  // namespace

struct CUstream_st {
  std::shared_ptr<Queue> queue = std::make_shared<Queue>();
};
struct CUevent_st {
  Mark mark{nullptr, 0};
  std::shared_ptr<Capture> capture;
  std::vector<size_t> nodes;
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
  bool timed;
};
struct CUgraph_st {
  std::vector<Node> nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Node>> nodes;
};

namespace {

struct Streams {
  CUstream_st main;  // the default stream
  std::vector<std::shared_ptr<Queue>> queues{main.queue};
  std::vector<Capture*> captures;
  uint32_t random = 1;

  uint32_t below(uint32_t n) {
    random = random * 1664525u + 1013904223u + seed();
    return uint32_t(uint64_t(random) * n >> 32);
  }
};
Streams& streams() {
  static auto* s = new Streams;
  return *s;
}

std::shared_ptr<Queue>& queue_of(cudaStream_t s) {
  if (!s || s == cudaStreamLegacy || s == cudaStreamPerThread) return streams().main.queue;
  return s->queue;
}
bool is_default(const std::shared_ptr<Queue>& q) { return q == streams().main.queue; }

void run_first(Queue& q) {
  Piece piece = std::move(q.pieces.front());
  q.pieces.pop_front();
  if (sticky() == cudaSuccess && piece.work) piece.work();
  q.done++;
}
const Mark* holds_back(const Queue& q) {
  for (const Mark& m : q.pieces.front().after)
    if (m.queue->done < m.position) return &m;
  return nullptr;
}

// One piece that brings the queue on, or, with a seed, any other one that may run.
void run_one(Queue* q) {
  Streams& all = streams();
  if (seed()) {
    std::vector<Queue*> may;
    for (auto& other : all.queues)
      if (!other->pieces.empty() && !holds_back(*other)) may.push_back(other.get());
    if (!may.empty()) return run_first(*may[all.below(uint32_t(may.size()))]);
  }
  while (const Mark* m = holds_back(*q)) q = m->queue.get();
  run_first(*q);
}
void run_until(const Mark& m) {
  Access access;
  while (m.queue->done < m.position) run_one(m.queue.get());
}
cudaError_t break_capture(Capture& c, cudaError_t status, const std::string& why) {
  if (c.broken.empty()) c.broken = why;
  return report(status, why);
}

void remember(const std::shared_ptr<Queue>& q) {
  auto& list = streams().queues;
  // Streams that were destroyed go once their work is done.
  std::erase_if(list, [&](auto& o) { return o.use_count() == 1 && o->pieces.empty(); });
  list.push_back(q);
}

}  // namespace

namespace deem::emu {

std::recursive_mutex& runtime_mutex() {
  static auto* m = new std::recursive_mutex;
  return *m;
}

bool capturing(cudaStream_t stream) { return queue_of(stream)->capture != nullptr; }

cudaError_t refuse_in_capture(const char* what, bool relaxed_allows) {
  for (Capture* c : streams().captures)
    if (!relaxed_allows || c->mode != cudaStreamCaptureModeRelaxed)
      return break_capture(*c, cudaErrorStreamCaptureUnsupported, str(what, " while a stream is captured"));
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, const char* what, Work work) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  const std::shared_ptr<Queue>& q = queue_of(stream);
  if (q->capture) {
    q->capture->nodes.push_back({std::move(work), q->last});
    q->last = {q->capture->nodes.size() - 1};
    return cudaSuccess;
  }
  Piece piece{std::move(work), std::move(q->after)};
  q->after.clear();
  for (auto& other : streams().queues) {
    if (other == q || !other->blocking || !q->blocking) continue;
    if (!is_default(q) && !is_default(other)) continue;
    if (other->capture)
      return break_capture(*other->capture, cudaErrorStreamCaptureImplicit,
                           str(what, " on the default stream while a blocking stream is captured"));
    if (other->done < other->issued) piece.after.push_back({other, other->issued});
  }
  q->pieces.push_back(std::move(piece));
  q->issued++;
  return cudaSuccess;
}

cudaError_t finish(cudaStream_t stream, const char* what) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  const std::shared_ptr<Queue>& q = queue_of(stream);
  if (q->capture)
    return break_capture(*q->capture, cudaErrorStreamCaptureUnsupported, str(what, " of a stream in capture"));
  if (cudaError_t e = refuse_in_capture(what, true)) return e;
  run_until({q, q->issued});
  return sticky();
}

cudaError_t finish_all(const char* what) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (cudaError_t e = refuse_in_capture(what, false)) return e;
  const auto all = streams().queues;
  for (auto& q : all) run_until({q, q->issued});
  return sticky();
}

}  // namespace deem::emu

// ---- streams
extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  Lock lock(runtime_mutex());
  if (!stream || flags > cudaStreamNonBlocking) return report(cudaErrorInvalidValue);
  *stream = new CUstream_st;
  (*stream)->queue->blocking = flags != cudaStreamNonBlocking;
  (*stream)->queue->priority = priority;
  remember((*stream)->queue);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, cudaStreamDefault, 0); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int* priority) {
  *priority = queue_of(s)->priority;
  return cudaSuccess;
}
cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* flags) {
  *flags = queue_of(s)->blocking ? cudaStreamDefault : cudaStreamNonBlocking;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
  Lock lock(runtime_mutex());
  if (!s || s == cudaStreamLegacy || s == cudaStreamPerThread) return report(cudaErrorInvalidResourceHandle);
  if (s->queue->capture)
    break_capture(*s->queue->capture, cudaErrorStreamCaptureInvalidated, "a stream in capture was destroyed");
  delete s;  // its work is done later all the same
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) { return finish(s, "cudaStreamSynchronize"); }
cudaError_t cudaDeviceSynchronize() { return finish_all("cudaDeviceSynchronize"); }

// Work goes on a little at each question, as it would beside it.
cudaError_t cudaStreamQuery(cudaStream_t s) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  auto& q = queue_of(s);
  if (q->capture)
    return break_capture(*q->capture, cudaErrorStreamCaptureUnsupported, "cudaStreamQuery of a stream in capture");
  if (q->done == q->issued) return cudaSuccess;
  Access access;
  run_one(q.get());
  return sticky() ? sticky() : q->done == q->issued ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* data) {
  if (!f) return report(cudaErrorInvalidValue);
  return enqueue(s, "cudaLaunchHostFunc", [f, data] { f(data); });
}

// ---- events
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (!event) return report(cudaErrorInvalidValue);
  *event = new CUevent_st{};
  (*event)->timed = !(flags & cudaEventDisableTiming);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(runtime_mutex());
  if (!event) return report(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t s, unsigned) {
  Lock lock(runtime_mutex());
  if (!event) return report(cudaErrorInvalidResourceHandle);
  auto q = queue_of(s);
  if (q->capture) {
    event->capture = q->capture;
    event->nodes = q->last;
    return cudaSuccess;
  }
  event->capture = nullptr;
  auto time = std::make_shared<std::chrono::steady_clock::time_point>();
  if (cudaError_t e = enqueue(s, "cudaEventRecord", [time] { *time = std::chrono::steady_clock::now(); })) return e;
  event->time = time;
  event->mark = {q, q->issued};
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) { return cudaEventRecordWithFlags(event, s, 0); }

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (!event) return report(cudaErrorInvalidResourceHandle);
  auto q = queue_of(s);
  if (event->capture) {
    Capture& c = *event->capture;
    if (q->capture && q->capture != event->capture)
      return break_capture(c, cudaErrorStreamCaptureMerge, "cudaStreamWaitEvent between two captures");
    if (!q->capture) {
      q->capture = event->capture;
      q->last.clear();
      c.streams.push_back(q.get());
    }
    for (size_t n : event->nodes)
      if (std::find(q->last.begin(), q->last.end(), n) == q->last.end()) q->last.push_back(n);
    return cudaSuccess;
  }
  if (q->capture)
    return break_capture(*q->capture, cudaErrorStreamCaptureIsolation,
                         "a captured stream waits for an event from outside");
  if (event->mark.queue && event->mark.queue != q && event->mark.queue->done < event->mark.position)
    q->after.push_back(event->mark);
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (!event) return report(cudaErrorInvalidResourceHandle);
  if (event->capture)
    return break_capture(*event->capture, cudaErrorCapturedEvent, "cudaEventSynchronize of a captured event");
  if (cudaError_t e = refuse_in_capture("cudaEventSynchronize", true)) return e;
  if (event->mark.queue) run_until(event->mark);
  return sticky();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (!event) return report(cudaErrorInvalidResourceHandle);
  if (event->capture)
    return break_capture(*event->capture, cudaErrorCapturedEvent, "cudaEventQuery of a captured event");
  const Mark& m = event->mark;
  if (!m.queue || m.queue->done >= m.position) return cudaSuccess;
  Access access;
  run_one(m.queue.get());
  return sticky() ? sticky() : m.queue->done >= m.position ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(runtime_mutex());
  if (!ms || !from || !to || !from->timed || !to->timed || !from->time || !to->time)
    return report(cudaErrorInvalidResourceHandle);
  if (from->mark.queue->done < from->mark.position || to->mark.queue->done < to->mark.position)
    return cudaErrorNotReady;
  *ms = std::chrono::duration<float, std::milli>(*to->time - *from->time).count();
  return cudaSuccess;
}

// ---- graphs
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (!s || s == cudaStreamLegacy)
    return report(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
  Queue& q = *s->queue;
  if (q.capture) return report(cudaErrorIllegalState, "the stream is captured already");
  if (!q.after
           .empty()) {  // a wait before the capture holds back whatever the stream does after it, which a graph cannot say
    q.pieces.push_back({nullptr, std::move(q.after)});
    q.issued++;
    q.after.clear();
  }
  q.capture = std::make_shared<Capture>();
  q.capture->origin = &q;
  q.capture->mode = mode;
  q.capture->streams = {&q};
  q.last.clear();
  streams().captures.push_back(q.capture.get());
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  Lock lock(runtime_mutex());
  if (!graph) return report(cudaErrorInvalidValue);
  *graph = nullptr;
  if (!s || s == cudaStreamLegacy || !s->queue->capture)
    return report(cudaErrorIllegalState, "the stream is not captured");
  auto c = s->queue->capture;
  if (c->origin != s->queue.get())
    return break_capture(*c, cudaErrorStreamCaptureUnmatched, "the capture began on another stream");
  // Whatever other streams did must have been waited for by this one.
  std::vector<bool> reached(c->nodes.size());
  std::vector<size_t> open = s->queue->last;
  while (!open.empty()) {
    const size_t n = open.back();
    open.pop_back();
    if (reached[n]) continue;
    reached[n] = true;
    open.insert(open.end(), c->nodes[n].after.begin(), c->nodes[n].after.end());
  }
  const bool joined = std::find(reached.begin(), reached.end(), false) == reached.end();
  for (auto& q : streams().queues)
    if (q->capture == c) q->capture = nullptr, q->last.clear();
  std::erase(streams().captures, c.get());
  if (!c->broken.empty()) return report(cudaErrorStreamCaptureInvalidated, c->broken);
  if (!joined) return report(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{c->nodes};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  Lock lock(runtime_mutex());
  auto& c = queue_of(s)->capture;
  *status = !c                  ? cudaStreamCaptureStatusNone
            : c->broken.empty() ? cudaStreamCaptureStatusActive
                                : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(*mode, current);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (!exec || !graph) return report(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{std::make_shared<const std::vector<Node>>(graph->nodes)};
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
  return exec ? cudaSuccess : report(cudaErrorInvalidValue);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  if (!exec) return report(cudaErrorInvalidValue);
  return enqueue(s, "cudaGraphLaunch", [nodes = exec->nodes] {
    // Nodes that follow none of the ones left, in any order.
    std::vector<size_t> left(nodes->size());
    std::vector<bool> done(nodes->size());
    for (size_t i = 0; i < left.size(); i++) left[i] = i;
    while (!left.empty()) {
      std::vector<size_t> may;
      for (size_t i = 0; i < left.size() && (may.empty() || seed()); i++) {
        const auto& after = (*nodes)[left[i]].after;
        if (std::all_of(after.begin(), after.end(), [&](size_t n) { return done[n]; })) may.push_back(i);
      }
      const size_t pick = may[seed() ? streams().below(uint32_t(may.size())) : 0], node = left[pick];
      left.erase(left.begin() + ptrdiff_t(pick));
      if (sticky() == cudaSuccess) (*nodes)[node].work();
      done[node] = true;
    }
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (!exec) return report(cudaErrorInvalidValue);
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (!graph) return report(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (!graph || !count || nodes) return report(cudaErrorInvalidValue);  // only their number is known here
  *count = graph->nodes.size();
  return cudaSuccess;
}

}  // extern "C"
