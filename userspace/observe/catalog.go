package observe

// Metric is one metric of the catalogue.
type Metric struct {
	Name   string
	Help   string
	Gauge  bool // else a counter
	Labels []string
}

// The catalogue: every metric that an edge exports beside Go's and the process's own. Lists in
// documents are made from it.
var (
	BuildInfo    = gauge("berm_build_info", "Always 1; the labels say what runs.", "version", "go", "node", "site")
	Ready        = gauge("berm_ready", "1 while the edge should get traffic.")
	StartTime    = gauge("berm_start_time_seconds", "When the daemon started, in Unix seconds.")
	Reloads      = counter("berm_config_reloads_total", "Reloads of the file by result (ok, refused).", "result")
	ConfigLoaded = gauge("berm_config_loaded_seconds", "When the configuration in force was loaded, in Unix seconds.")
	Certificate  = gauge("berm_certificate_expiry_seconds", "When the last certificate for a name expires, in Unix seconds; name is the first in it.", "name")
	CertProblems = gauge("berm_certificate_problems", "What in tls.dir cannot be used.")

	KernelUp      = gauge("berm_kernel_up", "1 while the kernel half's pinned maps are open.")
	KernelObserve = gauge("berm_kernel_observe_only", "1 while the kernel half counts drops without enforcing them.")
	KernelDrift   = counter("berm_kernel_drift_total", "Entries of the kernel half's tables that somebody changed behind the daemon, by table.", "table")
	Drops         = counter("berm_drops_total", "Packets dropped by the kernel half, by reason.", "reason")
	DropBytes     = counter("berm_drop_bytes_total", "IP bytes dropped by the kernel half, by reason.", "reason")
	Shadows       = counter("berm_shadow_drops_total", "Packets that a rule in shadow would have dropped, by reason.", "reason")
	ShadowBytes   = counter("berm_shadow_drop_bytes_total", "IP bytes that a rule in shadow would have dropped, by reason.", "reason")
	Stages        = counter("berm_stage_packets_total", "Packets by the stage that decided and the exit they took.", "stage", "exit")
	StageBytes    = counter("berm_stage_bytes_total", "IP bytes by the stage that decided and the exit they took.", "stage", "exit")
	VIPPackets    = counter("berm_vip_packets_total", "Packets of a VIP by fate (in, dropped, shadowed, forwarded, answered; cid: steered by QUIC connection ID; cid_lost: should have been; stun, stun_lost: the same by ICE username fragment; of rows that moved to a server, newcomer: of a flow begun since, former: of an older one, crowded: begins one, and is not noted).", "vip", "address", "protocol", "fate")
	VIPBytes      = counter("berm_vip_bytes_total", "IP bytes of a VIP by fate (in, dropped, shadowed, forwarded, answered; cid: steered by QUIC connection ID; cid_lost: should have been; stun, stun_lost: the same by ICE username fragment; of rows that moved to a server, newcomer: of a flow begun since, former: of an older one, crowded: begins one, and is not noted).", "vip", "address", "protocol", "fate")
	TenantPackets = counter("berm_tenant_packets_total", "Packets of a tenant.", "tenant")
	TenantBytes   = counter("berm_tenant_bytes_total", "IP bytes of a tenant.", "tenant")
	MapEntries    = gauge("berm_map_entries", "Entries in use of a table of the kernel half.", "table")
	BackendReady  = gauge("berm_backend_ready", "1 while the next hop to a backend is known.", "backend")
	BackendUp     = gauge("berm_backend_healthy", "1 while a backend answers probes, so that it may have rows.", "set", "backend")
	BackendSeen   = gauge("berm_backend_seen_seconds", "Seconds since a backend's last sign of life.", "backend")
	Deadman       = gauge("berm_deadman_limit_seconds", "After what silence of the daemon the kernel half hands new flows to other edges; 0 = never.")
	CCConnections = counter("berm_cc_connections_total", "TCP connections by the profile they began with; host: the host's own parameters.", "profile")
	CCRefused     = counter("berm_cc_refused_total", "Of those, where the kernel did not take all of the profile.", "profile")
	CCLearnMode   = gauge("berm_cc_learn_mode", "1 for what the learner of controllers does (off, shadow, on), else 0.", "mode")
	CCLearned     = gauge("berm_cc_learned_prefixes", "Prefixes that the learner of controllers has chosen a profile for, by profile.", "profile")
	CCLearnHeld   = gauge("berm_cc_learn_held_prefixes", "Of those, where an operator or the file has decided.")
	CCChanges     = counter("berm_cc_learn_changes_total", "Times that the learner of controllers chose another profile for a prefix.")
	CCEvicted     = counter("berm_cc_learn_evicted_total", "Prefixes that the learner of controllers forgot for room.")
	Events        = counter("berm_events_total", "Sampled packets read from the kernel half.")

	Connections     = counter("berm_connections_total", "Client connections accepted, by transport (tcp, quic).", "transport")
	OpenConns       = gauge("berm_connections_open", "Client connections open, by transport (tcp, quic).", "transport")
	InFlight        = gauge("berm_requests_in_flight", "Requests being answered, by protocol (h1, h2, h3).", "protocol")
	TLSFailures     = counter("berm_tls_handshake_failures_total", "TLS handshakes over TCP that failed.")
	TLSHandshakes   = counter("berm_tls_handshakes_total", "TLS handshakes answered, by transport (tcp, quic), session (full, resumed) and group of the key exchange.", "transport", "session", "group")
	EarlyTickets    = counter("berm_early_data_tickets_total", "Sessions resumed with a ticket that was good for early data (0-RTT), by what became of that (accepted, replayed, old, elsewhere, off).", "result")
	EarlyRequests   = counter("berm_early_data_requests_total", "Requests that came before the handshake was done, and went on.")
	QUICSelectable  = gauge("berm_quic_cc_selectable", "1 when QUIC connections get the controllers of their profiles; 0 when all run Reno, since this build was made without the patched quic-go.")
	QUICControllers = counter("berm_quic_cc_connections_total", "QUIC connections by the controller and the profile (host: none) they began with, and whether something of the profile was refused.", "controller", "profile", "refused")
	QUICReports     = counter("berm_quic_path_reports_total", "What QUIC connections measured, by whether the table of paths took it whole or bounded, so that no client sways what is known of its prefix.", "taken")
	QUICDatagrams   = counter("berm_quic_datagrams_total", "Datagrams of HTTP/3 that were read, by worker (listen.quic_workers).", "worker")
	QUICRetries     = counter("berm_quic_retries_total", "QUIC handshakes that had to show their address first.")
	Requests        = counter("berm_requests_total", "Requests answered, by protocol and class of status.", "protocol", "code")
	SentBytes       = counter("berm_response_body_bytes_total", "Body bytes sent to clients, by protocol.", "protocol")
	HeadRaw         = counter("berm_header_bytes_raw_total", "Bytes that heads of responses over h2 and h3 would take as lines of HTTP/1.1, by protocol.", "protocol")
	HeadWire        = counter("berm_header_bytes_wire_total", "Bytes of the frames that carried them, before encryption, by protocol.", "protocol")
	DietFields      = counter("berm_header_fields_dropped_total", "Fields of answers that headers.drop took out.")
	Stage           = counter("berm_pipeline_total", "Requests by the stage that had the last word, its action and reason.", "stage", "action", "reason", "shadow")
	CutResponses    = counter("berm_responses_cut_total", "Responses whose body broke off, by protocol.", "protocol")

	CacheRequests  = counter("berm_cache_requests_total", "Requests by what the cache did (hit, miss, collapsed, pass).", "result")
	CacheStale     = counter("berm_cache_stale_total", "Answers from stale objects, by why (revalidate, error).", "why")
	CacheFetches   = counter("berm_cache_fetches_total", "Fetches sent to origins for the cache.")
	CacheStored    = counter("berm_cache_stored_total", "Objects stored.")
	CacheEvicted   = counter("berm_cache_evicted_total", "Objects forgotten for room.")
	CachePurged    = counter("berm_cache_purged_total", "Objects forgotten on demand.")
	CacheBroken    = counter("berm_cache_incomplete_total", "Bodies that broke off while stored, and were forgotten.")
	CacheNotStored = counter("berm_cache_not_stored_total", "Responses not stored, by reason.", "reason")
	CacheHitBytes  = counter("berm_cache_hit_bytes_total", "Body bytes that hits were entitled to.")
	CacheObjects   = gauge("berm_cache_objects", "Objects held.")
	CacheBytes     = gauge("berm_cache_bytes", "Bytes charged against cache.memory.")
	CacheLimit     = gauge("berm_cache_limit_bytes", "Bytes that cache.memory allows.")

	DictionaryAnswers = counter("berm_dictionary_answers_total", "Answers that might have been encoded with a dictionary, or have become one, by what became of them (sent: encoded; not_smaller, unknown, not_for, malformed, unsuitable, size, busy: sent as they are; private, refused, coded, too_large: no dictionaries).", "result")
	DictionaryBytes   = counter("berm_dictionary_bytes_total", "Bytes of bodies that were sent encoded with a dictionary, before (raw) and after (wire).", "side")
	DictionaryEncoded = counter("berm_dictionary_encoded_total", "Bodies encoded with a dictionary; others were sent as they had been before.")
	DictionaryLearnt  = counter("berm_dictionary_learnt_total", "Answers that became dictionaries.")
	DictionaryEvicted = counter("berm_dictionary_evicted_total", "Dictionaries and encoded bodies forgotten for room.")
	Dictionaries      = gauge("berm_dictionaries", "Dictionaries held.")
	DictionaryHeld    = gauge("berm_dictionary_held_bytes", "Bytes charged against compression.dictionaries.memory.")

	OriginHealthy  = gauge("berm_origin_healthy", "1 while an origin server gets requests.", "origin", "url")
	OriginRequests = counter("berm_origin_requests_total", "Requests for an origin.", "origin")
	OriginFailures = counter("berm_origin_failures_total", "Requests for an origin that no server of it answered.", "origin")
	OriginRetried  = counter("berm_origin_retries_total", "Attempts at an origin beyond a request's first.", "origin")
	OriginRefused  = counter("berm_origin_refused_total", "Requests refused because max_pending of their origin was reached.", "origin")
	OriginInFlight = gauge("berm_origin_in_flight", "Requests that an origin is working on.", "origin")

	RelayPackets    = counter("berm_fec_packets_total", "Packets of a relay with forward error correction, by fate (sent, parity, dropped, received, repaired, missing, duplicate, refused).", "relay", "role", "fate")
	RelayLoss       = gauge("berm_fec_loss_ratio", "Share of packets that the path of a protecting relay loses, as its receiver reports it.", "relay")
	RelayOverhead   = gauge("berm_fec_overhead_ratio", "Packets of parity for each packet of a protecting relay, as planned.", "relay")
	StreamPackets   = counter("berm_fec_stream_packets_total", "Packets of a live stream, by fate (received, dropped, sent, parity, late; delivered, missing: as subscribers report).", "stream", "fate")
	StreamViewers   = gauge("berm_fec_stream_subscribers", "Subscribers of a live stream.", "stream")
	StreamOverhead  = gauge("berm_fec_stream_overhead_ratio", "Packets of parity for each packet of a live stream, for the subscriber that needs most.", "stream")
	AnycastPhase    = gauge("berm_anycast_phase", "1 for what routers are told now (announced, prepended, withdrawn), else 0.", "phase")
	AnycastChanges  = counter("berm_anycast_changes_total", "Times that a phase began.", "phase")
	AnycastRoutes   = gauge("berm_anycast_routes", "Prefixes that routers are told of.")
	AnycastPeerUp   = gauge("berm_anycast_peer_up", "1 while the BGP session with a router is established.", "peer")
	AnycastSessions = counter("berm_anycast_sessions_total", "BGP sessions with a router that came up.", "peer")
	AnycastReceived = gauge("berm_anycast_received_prefixes", "Prefixes that a router sent, none of which is used.", "peer")
	AnycastBFDUp    = gauge("berm_anycast_bfd_up", "1 while the BFD session with a router is up.", "peer")
	AnycastBFD      = counter("berm_anycast_bfd_packets_total", "BFD packets by what became of them (sent, received, held).", "peer", "fate")
	AnycastIgnored  = counter("berm_anycast_bfd_ignored_total", "BFD packets that were malformed, from afar, or no router's.")

	GeoPrefixes = gauge("berm_geo_prefixes", "Prefixes compiled into the table in force.")
	GeoRecords  = gauge("berm_geo_records", "Distinct records of the table in force.")
	GeoLoaded   = gauge("berm_geo_loaded_seconds", "When the table in force was compiled, in Unix seconds.")
)

// catalogue holds every metric, in order.
var catalogue []*Metric //nolint:gochecknoglobals // written while variables above are initialized, then constant

func counter(name, help string, labels ...string) *Metric {
	return add(&Metric{Name: name, Help: help, Labels: labels})
}

func gauge(name, help string, labels ...string) *Metric {
	return add(&Metric{Name: name, Help: help, Gauge: true, Labels: labels})
}

func add(m *Metric) *Metric {
	catalogue = append(catalogue, m)
	return m
}

// Catalogue lists every metric.
func Catalogue() []Metric {
	out := make([]Metric, len(catalogue))
	for i, m := range catalogue {
		out[i] = *m
	}
	return out
}
