#include "client/load_pipeline.h"

#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/load_task.h"

namespace latentkv {
namespace {

class LoadJob final : public Job {
 public:
  explicit LoadJob(std::shared_ptr<LoadTask> task) : task_(std::move(task)) {}
  ~LoadJob() override {
    task_->Cancel();
    if (thread_.joinable()) thread_.join();
  }
  template <typename Body>
  void RunOnThread(Body body) {
    thread_ = std::thread(std::move(body));
  }
  absl::StatusOr<TransferResult> Wait(int32_t layer,
                                      absl::Duration timeout) override {
    return task_->Wait(layer, absl::Now() + timeout);
  }

 private:
  const std::shared_ptr<LoadTask> task_;
  std::thread thread_;
};

}  // namespace

LoadPipeline::~LoadPipeline() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (LoadTask* task : running_) task->Cancel();
  ended_.wait(lock, [this] { return running_.empty(); });
}

absl::StatusOr<std::unique_ptr<Job>> LoadPipeline::Start(LoadRequest request) {
  auto task = std::make_shared<LoadTask>(parts_, std::move(request));
  auto job = std::make_unique<LoadJob>(task);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    running_.insert(task.get());
  }
  try {
    job->RunOnThread([this, task] {
      task->Run();
      Ended(task.get());
    });
  } catch (const std::system_error& error) {
    Ended(task.get());
    return absl::ResourceExhaustedError(
        absl::StrCat("no thread for a load: ", error.what()));
  }
  return job;
}

void LoadPipeline::Ended(LoadTask* task) {
  // Notified under the lock: the pipeline may be destroyed as soon as it is
  // released.
  std::lock_guard<std::mutex> lock(mutex_);
  running_.erase(task);
  ended_.notify_all();
}

}  // namespace latentkv
