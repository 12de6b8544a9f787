// Package control is the admin API: HTTP and JSON on a Unix socket that the group berm may use,
// its types, its client, and the operations on the kernel half's maps, which root's CLI runs
// directly when the daemon is down.
package control

import (
	"net/netip"
	"time"

	"github.com/bermedge/berm/maps"
)

// DefaultSocket is where bermd listens unless admin.socket says otherwise.
const DefaultSocket = "/run/berm/berm.sock"

// Changes answers every call that changes something: one sentence for each thing that changed.
type Changes struct {
	Changed []string `json:"changed"`
}

// Status is what `berm status` shows.
type Status struct {
	Node      string     `json:"node"`
	Site      string     `json:"site,omitempty"`
	Version   string     `json:"version"`
	PID       int        `json:"pid"`
	Started   time.Time  `json:"started"`
	Ready     bool       `json:"ready"`
	Problems  []string   `json:"problems"` // why it is not ready, or works with less than it should
	Config    ConfigInfo `json:"config"`
	Kernel    KernelInfo `json:"kernel"`
	Listeners []Listener `json:"listeners"`
	VIPs      []VIP      `json:"vips"`
	Backends  []Backend  `json:"backends"`
	Origins   []Origin   `json:"origins"`
	Cache     Cache      `json:"cache"`
	Geo       GeoInfo    `json:"geo"`
	TLS       TLSInfo    `json:"tls"`
	QUIC      QUICInfo   `json:"quic"`
	Requests  uint64     `json:"requests"`  // answered since the start
	InFlight  int64      `json:"in_flight"` // being answered now

	Dictionaries Dictionaries `json:"dictionaries"`

	Generations []Generation `json:"generations"` // the newest first
}

// Generation is a process of the daemon that has connections: the one that serves, or one before it that ends what it
// began.
type Generation struct {
	Number uint32 `json:"number"` // counts the processes
	PID    int    `json:"pid"`
	Serves bool   `json:"serves"` // new connections go to it
}

// ConfigInfo says which file runs, and why a newer one does not.
type ConfigInfo struct {
	Path   string    `json:"path"` // empty: built-in defaults
	Loaded time.Time `json:"loaded"`
	Error  string    `json:"error,omitempty"` // of the last reload, when it was refused
}

// KernelInfo is the kernel half as the daemon sees it through the pins.
type KernelInfo struct {
	Attached    bool   `json:"attached"` // the pinned maps are open
	Error       string `json:"error,omitempty"`
	Pins        string `json:"pins"`
	Contract    uint32 `json:"contract"`
	ObserveOnly bool   `json:"observe_only"`
	Deadman     string `json:"deadman"`        // after this silence of the daemon new flows go elsewhere; off
	Chances     uint64 `json:"chances"`        // packets sent to a row's former owner
	Handed      uint64 `json:"handed"`         // packets of new flows sent elsewhere while the daemon was silent
	Carried     uint64 `json:"carried"`        // packets sent to the site where their flow may be, or is
	Spilled     uint64 `json:"spilled"`        // packets of new flows sent to another site, to begin there
	Self        string `json:"self,omitempty"` // this edge's backend
	VIPs        int    `json:"vips"`
	Packets     uint64 `json:"packets"` // through the kernel half since it was loaded
	Dropped     uint64 `json:"dropped"`
	Shadowed    uint64 `json:"shadowed"`
	Forwarded   uint64 `json:"forwarded"`
}

// Listener is one open port.
type Listener struct {
	Protocols []string `json:"protocols"` // h1, h2, h3
	Address   string   `json:"address"`
	Network   string   `json:"network"` // tcp or udp
}

// VIP is a service: an address, a port and a protocol.
type VIP struct {
	ID       uint32      `json:"id,omitempty"`
	Name     string      `json:"name"`
	Address  netip.Addr  `json:"address"`
	Port     uint16      `json:"port"`
	Protocol string      `json:"protocol"`           // tcp or udp
	Backends string      `json:"backends,omitempty"` // backend set; empty: this host
	Geo      string      `json:"geo,omitempty"`      // policy
	Rate     string      `json:"rate,omitempty"`     // class
	Shadow   bool        `json:"shadow,omitempty"`
	Strict   bool        `json:"strict,omitempty"` // on the address: drop ports that have no service
	QUIC     bool        `json:"quic,omitempty"`   // packets go to the backend that their connection ID names
	STUN     bool        `json:"stun,omitempty"`   // WebRTC goes to the backend that its ICE username fragment names
	Gate     maps.Gate   `json:"gate"`
	Shut     maps.Shut   `json:"shut"`            // which gates are shut now; set by Berm
	Owner    string      `json:"owner,omitempty"` // operator, file or guard; set by Berm
	Counters VIPCounters `json:"counters"`
}

// VIPCounters are the packets of one VIP since the kernel half was loaded.
type VIPCounters struct {
	In        Counter `json:"in"`
	Dropped   Counter `json:"dropped"`
	Shadowed  Counter `json:"shadowed"`
	Forwarded Counter `json:"forwarded"`
	Answered  Counter `json:"answered"`
	CID       Counter `json:"cid"`      // steered by QUIC connection ID
	CIDLost   Counter `json:"cid_lost"` // by row instead: the ID names no backend, or one that is not ready
	STUN      Counter `json:"stun"`     // steered by ICE username fragment, in the packet or shown by its flow
	STUNLost  Counter `json:"stun_lost"`
	// Of rows that have moved to a server.
	Newcomer Counter `json:"newcomer"` // of a flow begun since
	Former   Counter `json:"former"`   // of an older one: to the row's former owner
	Crowded  Counter `json:"crowded"`  // begins one, and found no place: the same
}

// Counter counts packets and their IP bytes.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Backend is what a VIP's packets are delivered to.
type Backend struct {
	ID      uint32     `json:"id"`
	Set     string     `json:"set"`
	Site    string     `json:"site,omitempty"` // another one, where it is
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Via     maps.Via   `json:"via"`
	Probe   string     `json:"probe,omitempty"`  // how its health is found out
	Direct  string     `json:"direct,omitempty"` // why a server's probe asks at its own address, though it is to go through its tunnel
	Self    bool       `json:"self,omitempty"`
	Ready   bool       `json:"ready"` // its next hop is known
	Healthy bool       `json:"healthy"`
	Error   string     `json:"error,omitempty"` // why it is not healthy, or cannot be reached
	Rows    int        `json:"rows"`            // that it owns
	Moved   int        `json:"moved,omitempty"` // of those, whose former owner gets what it does not know
	// What it says of itself, or an operator said of it on this edge.
	Draining bool    `json:"draining,omitempty"`
	Weight   int     `json:"weight,omitempty"` // instead of the file's
	Share    int     `json:"share,omitempty"`  // as a canary, in basis points
	Seen     float64 `json:"seen"`             // seconds since its last sign of life; below 0: never
}

// RateClass is a set of limits for one source, for its IPv4 /24 or IPv6 /48, and for its network (ASN).
type RateClass struct {
	Name string `json:"name"`
	RateLimits
	Aggregate RateLimits `json:"aggregate"`
	Network   RateLimits `json:"network"`
	Shadow    bool       `json:"shadow,omitempty"`
	Owner     string     `json:"owner,omitempty"`
}

// RateLimits are so many a second, and at once. 0 means unlimited.
type RateLimits struct {
	Packets       uint64 `json:"packets"`
	PacketsBurst  uint64 `json:"packets_burst"`
	Bytes         uint64 `json:"bytes"`
	BytesBurst    uint64 `json:"bytes_burst"`
	SYNs          uint64 `json:"syns"`
	SYNsBurst     uint64 `json:"syns_burst"`
	Initials      uint64 `json:"initials"`
	InitialsBurst uint64 `json:"initials_burst"`
}

// GeoPolicy says what a VIP does with each country.
type GeoPolicy struct {
	Name     string   `json:"name"`
	Fallback string   `json:"fallback"` // allow, drop, shadow or mark
	Allow    []string `json:"allow,omitempty"`
	Drop     []string `json:"drop,omitempty"`
	Shadow   []string `json:"shadow,omitempty"`
	Mark     []string `json:"mark,omitempty"`
	Owner    string   `json:"owner,omitempty"`
}

// GeoInfo is what the prefix table was compiled from.
type GeoInfo struct {
	Databases []string  `json:"databases"`
	Prefixes  int       `json:"prefixes"`
	Records   int       `json:"records"`
	Networks  int       `json:"networks"` // autonomous systems that the databases name
	Numbered  int       `json:"numbered"` // and those of them that there was room for
	Loaded    time.Time `json:"loaded"`
	Took      float64   `json:"took_seconds"`
}

// GeoLoad asks to compile databases (and the file's overrides) into the prefix table. No
// databases: the ones of the configuration, read again.
type GeoLoad struct {
	Databases []string `json:"databases"`
}

// GeoTest is everything that is known and decided about one source address.
type GeoTest struct {
	IP        netip.Addr        `json:"ip"`
	Country   string            `json:"country"` // "" when unknown
	ACL       string            `json:"acl"`     // none, allow, drop, shadow or mark
	RateClass string            `json:"rate_class,omitempty"`
	ASN       uint32            `json:"asn,omitempty"`  // number of its network's autonomous system; 0: unknown
	Rule      uint16            `json:"rule,omitempty"` // number of the override that decided; 0: database
	Policies  map[string]string `json:"policies"`       // action of each geo policy
	Verdicts  []Verdict         `json:"verdicts"`
}

// Verdict is a time-limited decision about one source.
type Verdict struct {
	Source   netip.Addr `json:"source"`        // IPv6: its /64
	VIP      string     `json:"vip,omitempty"` // name; empty: all
	Action   string     `json:"action"`        // allow, drop, shadow or mark
	Reason   string     `json:"reason,omitempty"`
	Seconds  float64    `json:"seconds"` // left; 0: for ever
	Rule     uint32     `json:"rule,omitempty"`
	Evidence uint64     `json:"evidence,omitempty"`
	Hits     uint64     `json:"hits"`
	Owner    string     `json:"owner,omitempty"`
}

// VerdictChange adds a verdict, or takes the one about its source and VIP away.
type VerdictChange struct {
	Verdict
	Remove bool `json:"remove,omitempty"`
}

// VerdictResults answers a batch of changes: what was refused. All others were made.
type VerdictResults struct {
	Refused []VerdictRefused `json:"refused"`
}

// VerdictRefused is a change that was not made.
type VerdictRefused struct {
	Index  int    `json:"index"` // in the batch
	Error  string `json:"error"`
	Absent bool   `json:"absent,omitempty"` // there was nothing to take away
}

// Order is what an operator wants of a backend beside the file. What is left out stays as it is.
type Order struct {
	Backend  string `json:"backend"` // empty: this edge
	Draining *bool  `json:"draining,omitempty"`
	Weight   *int   `json:"weight,omitempty"` // 0: the file's
	Share    *int   `json:"share,omitempty"`  // of the rows as a canary, in basis points; 0: none
}

// PlanRequest asks what a change of rows would mean.
type PlanRequest struct {
	Sets   map[string][]Member `json:"sets,omitempty"` // of a candidate file; left out: as they are
	Add    []string            `json:"add,omitempty"`  // backends, to every set
	Remove []string            `json:"remove,omitempty"`
	Orders []Order             `json:"orders,omitempty"`
	Spills []Spill             `json:"spills,omitempty"`
}

// Spill is the share of a service's new flows that begins at another site.
type Spill struct {
	VIP         string `json:"vip"`
	To          string `json:"to"` // a site
	BasisPoints int    `json:"basis_points"`
}

// SpillPlan is what a change of a spill would mean for a service's new flows, in basis points.
type SpillPlan struct {
	VIP    string `json:"vip"`
	Before Spill  `json:"before"`
	After  Spill  `json:"after"`
	Moved  int    `json:"moved"` // begin elsewhere than before
}

// Member is a backend of a set in a candidate file.
type Member struct {
	Name   string `json:"name"`
	Weight int    `json:"weight,omitempty"`
}

// Plan is what a change would mean for the rows of each set.
type Plan struct {
	Sets   []SetPlan   `json:"sets"`
	Spills []SpillPlan `json:"spills,omitempty"`
}

// SetPlan is that of one set.
type SetPlan struct {
	Set      string        `json:"set"`
	Rows     int           `json:"rows"`
	Moved    int           `json:"moved"` // change their owner
	Least    int           `json:"least"` // any change to the new shares moves as many
	Backends []BackendPlan `json:"backends"`
}

// BackendPlan is that of one backend, in rows.
type BackendPlan struct {
	Name   string `json:"name"`
	Before int    `json:"before"`
	After  int    `json:"after"`
}

// Flow names a connection for `berm steer explain`.
type Flow struct {
	Protocol    string         `json:"protocol"` // tcp or udp
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	// CID is the QUIC connection ID that a packet is for, in hex. Without addresses it alone is explained.
	CID  string `json:"cid,omitempty"`
	Long bool   `json:"long,omitempty"` // it stands in a long header, which tells its length
	// Ufrag is the server's ICE username fragment in a connectivity check. Without addresses it alone is explained.
	Ufrag string `json:"ufrag,omitempty"`
}

// Steering explains where a flow's packets go.
type Steering struct {
	Flow     Flow   `json:"flow"`
	VIP      string `json:"vip,omitempty"`
	Set      string `json:"set,omitempty"`
	Hash     uint64 `json:"hash"`
	Row      int    `json:"row"`
	Owner    string `json:"owner,omitempty"`
	Previous string `json:"previous,omitempty"` // owned the row before: gets what the owner has no socket for
	Heir     string `json:"heir,omitempty"`     // where nobody did: gets the packets when the owner cannot
	// At other sites: who gets what nobody here has a socket for, and with whom the flow begins, if there.
	Carry string `json:"carry,omitempty"`
	Spill string `json:"spill,omitempty"`
	// CID is what the connection ID says; nil where it names nobody.
	CID *NamedServer `json:"cid,omitempty"`
	// Ufrag is what the ICE username fragment says; nil where it is none of this site's.
	Ufrag    *Ufrag   `json:"ufrag,omitempty"`
	Delivery string   `json:"delivery"` // foreign, local, forward, carry, drop or fail_open; by row where a connection ID alone does not say
	Steps    []string `json:"steps"`    // the reasoning, a sentence each
}

// ShadowRule is a rule that is counted and not enforced.
type ShadowRule struct {
	Rule      string      `json:"rule"` // what berm shadow promote calls it
	What      string      `json:"what"`
	Owner     string      `json:"owner"`
	Reasons   []string    `json:"reasons,omitempty"`
	WouldDrop Counter     `json:"would_drop"`
	Shared    bool        `json:"shared,omitempty"`  // the count is that of all rules with these reasons
	Sources   []TopSource `json:"sources,omitempty"` // evidence: sampled sources of the last minute
}

// ShadowChange promotes a rule to being enforced, or puts it in shadow.
type ShadowChange struct {
	Rule   string `json:"rule"`
	Shadow bool   `json:"shadow"`
}

// Drops are the packets refused since the kernel half was loaded.
type Drops struct {
	Drops  []Drop  `json:"drops"`
	Stages []Stage `json:"stages"`
}

// Drop is one drop reason.
type Drop struct {
	Reason   string  `json:"reason"`
	Number   uint32  `json:"number"`
	Dropped  Counter `json:"dropped"`
	Shadowed Counter `json:"shadowed"`
}

// Stage counts the packets that left the kernel half's pipeline at a stage, by exit.
type Stage struct {
	Stage string  `json:"stage"`
	Exit  string  `json:"exit"`
	Count Counter `json:"count"`
}

// Top is a view of the last seconds, per second.
type Top struct {
	Seconds  float64     `json:"seconds"`
	Sources  []TopSource `json:"sources"` // estimated from sampled packets, busiest first
	VIPs     []TopVIP    `json:"vips"`
	Drops    []TopDrop   `json:"drops"`
	Cache    Cache       `json:"cache"`
	Requests float64     `json:"requests"` // answered per second
}

// TopSource is one source (IPv6: a /64) among the sampled packets.
type TopSource struct {
	Source  netip.Addr `json:"source"`
	Country string     `json:"country,omitempty"`
	Packets float64    `json:"packets"`
	Bytes   float64    `json:"bytes"`
	Dropped float64    `json:"dropped"`
	Reason  string     `json:"reason,omitempty"` // of most of its drops
}

// TopVIP is one VIP's rates.
type TopVIP struct {
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"`
	Port      uint16     `json:"port"`
	Protocol  string     `json:"protocol"`
	In        Rate       `json:"in"`
	Dropped   Rate       `json:"dropped"`
	Shadowed  Rate       `json:"shadowed"`
	Forwarded Rate       `json:"forwarded"`
}

// TopDrop is one drop reason's rates.
type TopDrop struct {
	Reason   string `json:"reason"`
	Dropped  Rate   `json:"dropped"`
	Shadowed Rate   `json:"shadowed"`
}

// Rate is packets and bytes per second.
type Rate struct {
	Packets float64 `json:"packets"`
	Bytes   float64 `json:"bytes"`
}

// Cache is the state of the object cache.
type Cache struct {
	Objects   int     `json:"objects"`
	Bytes     int64   `json:"bytes"`
	MaxBytes  int64   `json:"max_bytes"`
	Hits      uint64  `json:"hits"`
	Misses    uint64  `json:"misses"`
	Evictions uint64  `json:"evictions"`
	HitRatio  float64 `json:"hit_ratio"` // of all lookups; in Top, of the last seconds
}

// Dictionaries is what is encoded with dictionaries that clients have. MaxBytes of 0: nothing.
type Dictionaries struct {
	Known    int               `json:"known"`
	Bytes    int64             `json:"bytes"`
	MaxBytes int64             `json:"max_bytes"`
	Raw      uint64            `json:"raw_bytes"`  // of bodies that were sent encoded, before
	Wire     uint64            `json:"wire_bytes"` // and as sent
	Results  map[string]uint64 `json:"results"`    // answers by what became of them; those that are not 0
}

// Purge names the object to forget.
type Purge struct {
	URL string `json:"url"`
}

// Origin is one origin server.
type Origin struct {
	Origin   string  `json:"origin"` // its pool's name
	URL      string  `json:"url"`
	Healthy  bool    `json:"healthy"`
	Error    string  `json:"error,omitempty"` // of the last probe or request
	InFlight int64   `json:"in_flight"`
	Requests uint64  `json:"requests"`
	Failures uint64  `json:"failures"`
	Latency  float64 `json:"latency_ms"` // moving average
}
