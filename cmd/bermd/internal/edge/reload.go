package edge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/transport"
)

// Reload reads the file again and switches to it. A file that is wrong, or that cannot be put in
// force, is refused: what ran before goes on, and the error says why.
func (e *Edge) Reload(ctx context.Context) (control.Changes, error) {
	if !e.upgrading.TryRLock() {
		return control.Changes{}, &control.Error{Status: http.StatusConflict, Message: "another process is taking over, or this one ends", Hint: "the one that serves then has read the file"}
	}
	defer e.upgrading.RUnlock()
	e.reloading.Lock()
	defer e.reloading.Unlock()
	e.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonicMicros()))
	defer func() { e.notify("READY=1\nSTATUS=" + e.summary()) }()
	done, err := e.reload(context.WithoutCancel(ctx)) // half of it would be nothing in force
	if err != nil {
		text := err.Error()
		e.refused.Store(&text)
		e.reloads[1].Add(1)
		e.log.Error("reload refused: the configuration before it stays in force", "file", e.opts.Path, "error", err)
		return control.Changes{}, &control.Error{Message: text, Hint: "the configuration before it stays in force"}
	}
	e.reloads[0].Add(1)
	e.log.Info("configuration reloaded", "file", e.opts.Path, "changes", done)
	return control.Changes{Changed: done}, nil
}

func (e *Edge) reload(ctx context.Context) (done []string, err error) {
	cfg, err := e.opts.Load()
	if err != nil {
		return nil, err
	}
	old := e.cfg.Load()
	next, err := e.content.build(old, cfg)
	if err != nil {
		return nil, err
	}
	var undo []func()
	defer func() {
		if err != nil {
			for i := range undo {
				undo[len(undo)-1-i]()
			}
			err = errors.Join(err, next.drop())
		}
	}()
	if err := e.certs.Apply(cfg.TLS.Config); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("certificates", e.certs.Apply(old.TLS.Config)) })
	undo = append(undo, func() { e.restored("ticket keys", e.tickets.Apply(old.TLS.Tickets)) })
	if err := e.tickets.Apply(cfg.TLS.Tickets); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("kernel half", e.kernel.apply(old)) })
	if err := e.kernel.apply(cfg); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("connection IDs", e.cids.apply(old)) })
	cidRestart := e.cids.apply(cfg)
	if cidRestart != nil && !errors.Is(cidRestart, transport.ErrRestart) {
		return nil, cidRestart
	}
	undo = append(undo, func() { e.restored("probes", e.probes.apply(old.AnswersProbes())) })
	if err := e.probes.apply(cfg.AnswersProbes()); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("relays", e.relays.Apply(old.FEC)) })
	if err := e.relays.Apply(cfg.FEC); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("streams", e.streams.Apply(old.FEC)) })
	if err := e.streams.Apply(cfg.FEC); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("metrics", e.scrape.apply(old.Admin.Metrics)) })
	if err := e.scrape.apply(cfg.Admin.Metrics); err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.restored("anycast", e.applyAnycast(ctx, old)) })
	if err := e.applyAnycast(ctx, cfg); err != nil {
		return nil, err
	}
	restart := e.server.Apply(cfg.Listen) // last: it is what clients notice
	if restart != nil && !errors.Is(restart, transport.ErrRestart) {
		return nil, restart
	}
	_ = e.kernel.use(e.generation.join) // new listeners; what fails is tried again each second
	next.use()
	e.early.Apply(cfg.TLS.EarlyData)
	e.diet.Apply(cfg.Headers)
	e.tickets.ApplyEarly(cfg.TLS.EarlyData)
	if old.Listen.MaxHeader != cfg.Listen.MaxHeader || old.Listen.MaxStreams != cfg.Listen.MaxStreams {
		e.tickets.ForgetEarly() // clients remember these, and early data must keep to them
	}
	e.log.Apply(cfg.Log)
	e.access.Sample(cfg.Log.Access)
	boundHeap(cfg.HeapLimit())
	e.accept(cfg)
	e.learner.Apply(cfg.CC)
	e.look() // before profiles that it chose go
	e.kernel.tidy(cfg)
	return e.differences(old, cfg, errors.Join(restart, cidRestart)), nil
}

func (e *Edge) restored(what string, err error) {
	if err != nil && !errors.Is(err, transport.ErrRestart) {
		e.log.Error("could not be put back as it was before the refused reload", "part", what, "error", err)
	}
}

// differences tells what a reload changed, a sentence for each section.
func (e *Edge) differences(old, cfg *config.Config, restart error) []string {
	var out []string
	a, b := reflect.ValueOf(*old), reflect.ValueOf(*cfg)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			out = append(out, fmt.Sprintf("section %s is in force as %s has it now", a.Type().Field(i).Tag.Get("yaml"), e.opts.Path))
		}
	}
	if old.Cache != cfg.Cache {
		out = append(out, "the cache starts empty, since its settings changed")
	}
	if restart != nil {
		out = append(out, restart.Error())
	}
	if old.Admin.Socket != cfg.Admin.Socket {
		out = append(out, "admin.socket "+transport.ErrRestart.Error())
	}
	if (len(old.FEC.Streams) > 0) != (len(cfg.FEC.Streams) > 0) {
		out = append(out, "fec.streams: datagrams of open listeners: a change "+transport.ErrRestart.Error())
	}
	if old.TLS.MinVersion != cfg.TLS.MinVersion {
		out = append(out, "tls.min_version "+transport.ErrRestart.Error())
	}
	if !reflect.DeepEqual(old.Kernel, cfg.Kernel) {
		out = append(out, "what section kernel says of loading and attaching takes effect with: berm kernel up")
	}
	if len(out) == 0 {
		out = append(out, "the file is as it was: what operators had changed of its VIPs, classes and policies is undone")
	}
	if len(cfg.Geo.Databases)+len(cfg.Geo.Networks) > 0 {
		out = append(out, "the geo databases were read again")
	}
	return out
}

func monotonicMicros() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Now().UnixMicro() // cannot happen; systemd would only mistrust the order of messages
	}
	return ts.Nano() / 1000
}
