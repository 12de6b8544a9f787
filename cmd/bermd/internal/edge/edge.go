// Package edge puts the daemon's parts together: it starts them from a configuration, changes them
// when a new one is loaded, and ends them in order.
package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/userspace/anycast"
	"github.com/bermedge/berm/userspace/certs"
	"github.com/bermedge/berm/userspace/clock"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/quiccc"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/diagnose"
	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/observe"
	"github.com/bermedge/berm/userspace/pipeline"
	"github.com/bermedge/berm/userspace/steer"
	"github.com/bermedge/berm/userspace/tickets"
	"github.com/bermedge/berm/userspace/transport"
)

// Options are what an edge is given besides its file.
type Options struct {
	Path    string                         // of the file; "" when Load makes the configuration up
	Load    func() (*config.Config, error) // reads the configuration, at the start and at each reload
	State   string                         // directory kept over restarts; "" for none
	Version string
	Log     *observe.Log
	Notify  func(state string) // systemd's sd_notify, or nothing
	Keeper  transport.Keeper   // who keeps the public sockets over a restart; nil for nobody
	Held    []*os.File         // those that it kept

	Start       func(files []*os.File) (Successor, error) // another process, to take over; nil: nobody would watch it
	Predecessor io.ReadWriter                             // to take over from; nil: from nobody
}

// Edge is a running daemon.
type Edge struct {
	opts    Options
	log     *observe.Log
	clock   clock.System
	started time.Time

	metrics *observe.Metrics
	access  *observe.Access
	busy    *observe.Busy
	history *observe.History

	certs    *certs.Store
	tickets  *tickets.Keys
	early    tickets.EarlyStage
	diet     pipeline.Diet
	cids     *cids
	content  *content
	pipeline *pipeline.Pipeline
	quiccc   *quiccc.Chooser
	server   *transport.Server
	kernel   *kernelLink
	learner  *congestion.Learner
	segments *diagnose.Recorder

	generation *generation
	probes     *probes
	relays     *fec.Relays
	streams    *fec.Streams
	anycast    *anycast.Announcer
	heart      heart
	admin      *http.Server
	socket     net.Listener

	token string // of the self-check, which only this process knows
	ready atomic.Bool
	sound atomic.Bool // the last self-check passed
	fatal chan error
	tasks sync.WaitGroup

	workers   sync.WaitGroup // what only one process does
	stopWork  context.CancelFunc
	upgrade   sync.Mutex    // held by Upgrade
	upgrading sync.RWMutex  // held while another process takes over, and when none may any more
	handed    chan struct{} // closed once one has
	stopping  chan struct{} // closed when this one ends

	reloading sync.Mutex // held while the configuration changes
	cfg       atomic.Pointer[config.Config]
	loaded    atomic.Pointer[time.Time]
	refused   atomic.Pointer[string] // why the last reload was, or nil
	reloads   [2]atomic.Uint64       // ok, refused
	scrape    *scrape
}

// Start builds everything and opens the listeners. On an error nothing is left open.
func Start(ctx context.Context, opts Options) (_ *Edge, err error) {
	cfg, err := opts.Load()
	if err != nil {
		if opts.Predecessor != nil {
			explain(opts.Predecessor, err)
		}
		return nil, err
	}
	opts.Log.Apply(cfg.Log)
	e := &Edge{
		opts: opts, log: opts.Log, started: time.Now(), metrics: observe.NewMetrics(), history: &observe.History{},
		token: rand.Text(), fatal: make(chan error, 8), handed: make(chan struct{}), stopping: make(chan struct{}),
	}
	e.heart.e = e
	e.anycast = e.newAnycast()
	e.busy = observe.NewBusy(e.clock)
	e.access = observe.NewAccess(e.log.Logger, e.metrics)
	e.access.Sample(cfg.Log.Access)
	defer func() {
		if err != nil {
			if opts.Predecessor != nil {
				explain(opts.Predecessor, err)
			}
			err = errors.Join(err, e.close(ctx))
			e.kernel.close()
		}
	}()
	key := e.resetKey()
	e.generation = newGeneration(e, key, cfg.Listen.Workers())
	e.kernel = newKernelLink(e, cfg)
	e.learner = newLearner(cfg)
	e.segments = diagnose.NewRecorder()
	boundHeap(cfg.HeapLimit())
	if e.certs, err = certs.Open(cfg.TLS.Config, opts.State, certNames(cfg)); err != nil {
		return nil, err
	}
	if e.tickets, err = tickets.Open(cfg.TLS.Tickets, opts.State, e.clock); err != nil {
		return nil, err
	}
	e.tickets.ApplyEarly(cfg.TLS.EarlyData)
	e.early.Apply(cfg.TLS.EarlyData)
	e.diet.Apply(cfg.Headers)
	if e.content, err = newContent(cfg, e.clock); err != nil {
		return nil, err
	}
	if err = e.buildPipeline(); err != nil {
		return nil, err
	}
	if e.cids, err = newCIDs(cfg); err != nil {
		return nil, err
	}
	e.streams = fec.NewStreams(e.log.Logger, e.pathBefore)
	e.quiccc = newQUICCC(e)
	e.accept(cfg)
	if opts.Predecessor != nil {
		err = e.succeed(cfg, key)
	} else {
		err = e.begin(cfg, key)
	}
	if err != nil {
		return nil, err
	}
	if err = e.applyAnycast(ctx, cfg); err != nil {
		return nil, err
	}
	e.registerMetrics()
	return e, nil
}

// begin opens everything: the maps before the sockets, which the kernel half chooses among, and before the admin
// socket, so that whoever asks there is answered from them.
func (e *Edge) begin(cfg *config.Config, key [32]byte) error {
	err := e.kernel.open(cfg)
	there := err == nil
	if there {
		_ = e.generation.prepare(e.kernel.set) // tried again when it is joined, which tells
	} else {
		e.generation.single(err)
	}
	if err := e.listen(cfg, key); err != nil {
		return err
	}
	if err := e.listenInside(cfg); err != nil {
		return err
	}
	if there {
		e.kernel.adopt(cfg)
	}
	return nil
}

// succeed opens what two processes may have, becomes the one that serves, and opens the rest.
func (e *Edge) succeed(cfg *config.Config, key [32]byte) error {
	e.generation.waits = true
	if err := e.kernel.open(cfg); err != nil {
		return err
	}
	if err := e.generation.prepare(e.kernel.set); err != nil {
		return err
	}
	if err := e.listen(cfg, key); err != nil {
		return err
	}
	if err := e.generation.join(e.kernel.set); err != nil {
		return err
	}
	if err := e.takeOver(e.opts.Predecessor); err != nil {
		return err
	}
	stop := e.kernel.liveMeanwhile()
	defer stop()
	if err := e.listenInside(cfg); err != nil {
		return err
	}
	e.kernel.adopt(cfg)
	return nil
}

// accept makes cfg the configuration in force.
func (e *Edge) accept(cfg *config.Config) {
	now := time.Now()
	e.cfg.Store(cfg)
	e.loaded.Store(&now)
	e.refused.Store(nil)
}

func (e *Edge) buildPipeline() (err error) {
	page := control.Page(e)
	stages := []pipeline.Stage{
		pipeline.Identify{},
		&e.early,
		selfCheckStage{pipeline.Local{Prefix: selfPath, Handler: http.HandlerFunc(answerSelfCheck), Allow: e.isSelfCheck}},
		streamStage{e},
		pipeline.Local{Prefix: control.PagePrefix, Handler: page, Allow: e.maySeeStatus},
		&e.content.routes, &e.content.dictionary, &e.content.cache, &e.content.origin,
	}
	e.pipeline, err = pipeline.New(stages, pipeline.WithObserver(clients{e.access}), pipeline.WithObserver(clients{e.segments}), pipeline.WithDiet(&e.diet))
	return err
}

// maySeeStatus reports whether a client is in listen.status_allow.
func (e *Edge) maySeeStatus(x *pipeline.Exchange) bool {
	client := x.Client.Addr().Unmap().WithZone("")
	for _, p := range e.cfg.Load().Listen.StatusAllow {
		if p.Contains(client) {
			return true
		}
	}
	return false
}

// listen opens the public listeners.
func (e *Edge) listen(cfg *config.Config, key [32]byte) (err error) {
	e.server, err = transport.Listen(cfg.Listen, transport.Options{
		TLS: e.tickets.TLS(e.certs.TLS()), Handler: e.pipeline, Log: e.log.Logger, ResetKey: key, Failed: e.fail,
		Workers: e.generation.id.Load().workers, ConnectionIDs: e.generation.fitting(e.cids.made), Introduce: e.generation.introduce,
		Keeper: e.opts.Keeper, Held: e.opts.Held,
		VerifyClients: e.kernel.clientsMustShow, EarlyData: e.tickets.EarlyData, Tune: e.quiccc.Tune,
		Datagrams: func() bool { return len(e.cfg.Load().FEC.Streams) > 0 },
		TokenKey:  derive(key, "berm tokens"), Wait: e.opts.Predecessor != nil,
	})
	if err != nil {
		e.server = nil
	}
	return err
}

// listenInside opens the admin socket, the metrics' listener, and the sockets of relays and probes.
func (e *Edge) listenInside(cfg *config.Config) (err error) {
	var note string
	if e.socket, note, err = control.Listen(cfg.Admin.Socket, cfg.Kernel.Group); err != nil {
		return err
	}
	if note != "" {
		e.log.Warn("admin socket", "note", note)
	}
	e.admin = &http.Server{Handler: control.Handler(e), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	e.tasks.Go(func() { e.ended("admin socket", e.admin.Serve(e.socket)) })
	e.scrape = &scrape{e: e}
	if err := e.scrape.apply(cfg.Admin.Metrics); err != nil {
		return err
	}
	e.relays = fec.NewRelays(e.log.Logger)
	if err := errors.Join(e.relays.Apply(cfg.FEC), e.streams.Apply(cfg.FEC)); err != nil {
		return err
	}
	e.probes = &probes{e: e, open: map[netip.AddrPort]*responder{}}
	return e.probes.apply(cfg.AnswersProbes())
}

func (e *Edge) ended(what string, err error) {
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		e.fail(fmt.Errorf("%s: %w", what, err))
	}
}

// fail ends the daemon: a part that it cannot do without has broken.
func (e *Edge) fail(err error) {
	select {
	case e.fatal <- err:
	default: // another failure is already being dealt with
	}
}

// resetKey is kept with the state, so that QUIC clients of a killed daemon learn of it at once.
func (e *Edge) resetKey() (key [32]byte) {
	path := filepath.Join(e.opts.State, "quic-reset.key")
	if b, err := os.ReadFile(path); err == nil && len(b) == len(key) && e.opts.State != "" {
		return [32]byte(b)
	}
	_, _ = rand.Read(key[:]) // never fails, and ends the process if it ever does
	if e.opts.State != "" {
		if err := os.WriteFile(path, key[:], 0o600); err != nil {
			e.log.Warn("the state directory cannot be written: a restart changes a self-signed certificate and forgets TLS sessions, and QUIC clients notice it only by timeout", "error", err)
		}
	}
	return key
}

// certNames are what a self-signed certificate is for.
func certNames(cfg *config.Config) []string {
	names := []string{"localhost", "127.0.0.1", "::1", cfg.Node.Name}
	if h, err := os.Hostname(); err == nil {
		names = append(names, h)
	}
	for _, v := range cfg.VIPs {
		names = append(names, v.Address.String())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Run serves until ctx ends or a part breaks, and then drains.
func (e *Edge) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	e.stopWork = stop
	e.workers.Go(func() { e.kernel.run(work) })
	e.workers.Go(func() { e.kernel.live(work) })
	e.workers.Go(func() { e.learn(work) })
	e.workers.Go(func() { e.certs.Watch(work, time.Second, e.certsChanged) })
	e.workers.Go(func() { e.tickets.Watch(work, time.Second, e.ticketsFailed) })
	e.workers.Go(func() { e.watchdog(work) })
	e.workers.Go(func() { e.heart.run(work) })
	e.workers.Go(func() { e.anycast.Run(work) })
	e.kernel.acquainted() // whoever restarts edges in turn stops the next one now: it has to know that this one is back
	e.ready.Store(true)
	e.notify("READY=1\nSTATUS=" + e.summary())
	var broken error
	select {
	case <-ctx.Done():
		e.log.Info("draining", "at_most", e.cfg.Load().Listen.Drain)
	case broken = <-e.fatal:
		e.log.Error("stopping: a part broke", "error", broken)
	case <-e.handed:
	}
	close(e.stopping)
	e.upgrading.Lock() // for good
	select {
	case <-e.handed:
		e.log.Info("another process serves: this one ends what it began", "at_most", e.cfg.Load().Listen.Drain)
		return errors.Join(broken, e.leave(context.WithoutCancel(ctx)))
	default:
	}
	e.notify("STOPPING=1")
	e.stopAnycast(context.WithoutCancel(ctx)) // while requests are still served: routers first
	e.ready.Store(false)
	since := time.Now()
	e.probes.say(steer.Says{Draining: true}) // new flows that reach other edges stay there
	keeps := e.cfg.Load().Steer.SecondChance > 0
	if keeps { // new flows that come here go to the others, and those that are here stay to their end
		e.kernel.handOver()
	}
	e.probes.heard(since, e.kernel.relieved)
	err := e.close(context.WithoutCancel(ctx))
	if !keeps { // nobody listens any more: what still comes is for the others
		e.kernel.handOver()
	}
	stop()
	e.workers.Wait()
	e.tasks.Wait()
	e.kernel.close()
	return errors.Join(broken, err)
}

// leave ends a process beside which another one serves.
func (e *Edge) leave(ctx context.Context) error {
	if err := e.server.DrainBeside(ctx); err != nil {
		e.log.Warn("some requests were cut: raise listen.drain if they need longer", "error", err)
	}
	err := errors.Join(e.admin.Close(), e.content.close())
	e.tasks.Wait()
	e.kernel.close()
	return err
}

// close ends what was started, in order: clients first, then what serves them.
func (e *Edge) close(ctx context.Context) error {
	var errs []error
	if e.streams != nil { // sessions have no end of their own
		errs = append(errs, e.streams.Close())
	}
	if e.server != nil {
		if err := e.server.Drain(ctx); err != nil {
			e.log.Warn("some requests were cut: raise listen.drain if they need longer", "error", err)
		}
	}
	errs = append(errs, e.anycast.Close())
	if e.content != nil {
		errs = append(errs, e.content.close())
	}
	if e.admin != nil {
		errs = append(errs, e.admin.Close())
	}
	if e.scrape != nil {
		errs = append(errs, e.scrape.apply(""))
	}
	if e.relays != nil {
		errs = append(errs, e.relays.Close())
	}
	if e.probes != nil {
		errs = append(errs, e.probes.close())
	}
	return errors.Join(errs...)
}

func (e *Edge) certsChanged(err error) {
	if err != nil {
		e.log.Error("certificates not taken: those before them stay", "error", err)
		return
	}
	e.log.Info("certificates reloaded")
}

func (e *Edge) ticketsFailed(err error) { e.log.Warn("ticket keys", "error", err) }

func (e *Edge) notify(state string) {
	if e.opts.Notify != nil {
		e.opts.Notify(state)
	}
}

// boundHeap has garbage collected when the heap has grown fivefold or nears its limit, whichever is first: with a
// cache that is not full, collecting at each doubling took a quarter of a hit's CPU time.
func boundHeap(limit int64) {
	debug.SetMemoryLimit(limit)
	if os.Getenv("GOGC") == "" { // else the operator has decided
		debug.SetGCPercent(400)
	}
}
