package edge

import (
	"fmt"
	"sync"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/observe"
)

// driftEvery is how many seconds lie between two looks for what others changed.
const driftEvery = 2

// drift is what somebody changed in the kernel half's tables without the daemon.
type drift struct {
	mu    sync.Mutex
	total map[string]uint64 // ever, by table
	open  uint64            // since the file was last put in force
	last  string
}

// lookForDrift tells what others have changed. It is not undone: who did it may know why. A reload
// puts the file in force again.
func (k *kernelLink) lookForDrift() {
	var found []maps.Drift
	err := k.use(func(set *maps.Set) (err error) {
		found, err = set.Drift()
		return err
	})
	if err != nil && k.problem() == nil {
		k.e.log.Warn("look for changes behind the daemon", "error", err)
	}
	for _, d := range found {
		k.e.log.Warn("somebody changed the kernel half's tables behind the daemon", "table", d.Table, "entry", d.Entry, "change", d.Change)
		k.drift.add(d)
	}
}

func (d *drift) add(x maps.Drift) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total == nil {
		d.total = map[string]uint64{}
	}
	d.total[x.Table]++
	d.open++
	d.last = x.String()
}

// settle is called once the file is in force again.
func (d *drift) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = 0
}

// problem is what the status says, or "".
func (d *drift) problem() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s to the kernel half's tables behind the daemon, the last: %s (berm reload puts the file in force again)", d.open, plural(int(d.open), "change"), d.last)
}

func (d *drift) emit(emit observe.Emit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for table, n := range d.total {
		emit(observe.KernelDrift, float64(n), table)
	}
}
