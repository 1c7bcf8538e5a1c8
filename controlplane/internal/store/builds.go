package store

import (
	"context"
	"database/sql"
	"time"
)

// The states of a build.
const (
	BuildQueued    = "queued"
	BuildLeased    = "leased"
	BuildDone      = "done"
	BuildFailed    = "failed"
	BuildCancelled = "cancelled"
)

// Build is one build of an engine.
type Build struct {
	Tenant       string
	ID           string
	Key          string
	Model        string
	ModelVersion int64
	ONNX         string
	Golden       string
	Recipe       string
	Target       string
	Priority     int
	State        string
	Attempt      uint32
	Device       string
	Leased       time.Time
	NotBefore    time.Time
	Tried        []BuildAttempt
	Message      string
	Log          string
	Created      time.Time
	CreatedBy    string
	Finished     time.Time
}

// Open reports whether the build is still to be done.
func (b *Build) Open() bool { return b.State == BuildQueued || b.State == BuildLeased }

// BuildAttempt is one lease that ended without an engine.
type BuildAttempt struct {
	Attempt uint32    `json:"attempt"`
	Device  string    `json:"device"`
	Class   string    `json:"class"`
	Message string    `json:"message"`
	Ended   time.Time `json:"ended"`
}

const buildColumns = `tenant, id, key, model, model_version, onnx, golden, recipe, target, priority, state, attempt, device, leased, not_before, tried, message, log, created, created_by, finished`

func scanBuild(scan func(...any) error) (Build, error) {
	var b Build
	var leased, notBefore, created, finished int64
	err := scan(&b.Tenant, &b.ID, &b.Key, &b.Model, &b.ModelVersion, &b.ONNX, &b.Golden, &b.Recipe, &b.Target, &b.Priority, &b.State, &b.Attempt, &b.Device,
		&leased, &notBefore, jsonText[[]BuildAttempt]{&b.Tried}, &b.Message, &b.Log, &created, &b.CreatedBy, &finished)
	b.Leased, b.NotBefore, b.Created, b.Finished = fromMillis(leased), fromMillis(notBefore), fromMillis(created), fromMillis(finished)
	return b, err
}

// PutBuild stores a build, or its change. A second open one of a key is an
// error that IsUnique knows.
func (tx *Tx) PutBuild(ctx context.Context, b Build) error {
	if b.Tried == nil {
		b.Tried = []BuildAttempt{}
	}
	tried, err := toJSON(b.Tried)
	if err != nil {
		return wrap(err, "encode attempts")
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO builds (`+buildColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT (tenant, id) DO UPDATE SET priority = excluded.priority, state = excluded.state, attempt = excluded.attempt, device = excluded.device,
		leased = excluded.leased, not_before = excluded.not_before, tried = excluded.tried, message = excluded.message,
		log = excluded.log, finished = excluded.finished`,
		b.Tenant, b.ID, b.Key, b.Model, b.ModelVersion, b.ONNX, b.Golden, b.Recipe, b.Target, b.Priority, b.State, b.Attempt, b.Device,
		millis(b.Leased), millis(b.NotBefore), tried, b.Message, b.Log, millis(b.Created), b.CreatedBy, millis(b.Finished))
	return wrap(err, "store build "+b.ID)
}

// OpenBuilds returns what is queued or leased, of all tenants.
func (tx *Tx) OpenBuilds(ctx context.Context) ([]Build, error) {
	return tx.builds(ctx, `state IN ('queued', 'leased') ORDER BY tenant, created, id`)
}

// Builds returns the newest builds of a tenant, at most limit.
func (tx *Tx) Builds(ctx context.Context, tenant string, limit int) ([]Build, error) {
	return tx.builds(ctx, `tenant = ? ORDER BY created DESC, id DESC LIMIT ?`, tenant, limit)
}

// LastBuilds returns the newest build of each key of a tenant.
func (tx *Tx) LastBuilds(ctx context.Context, tenant string) ([]Build, error) {
	return tx.builds(ctx, `tenant = ?1 AND NOT EXISTS (SELECT 1 FROM builds n WHERE n.tenant = builds.tenant AND n.key = builds.key
		AND (n.created, n.id) > (builds.created, builds.id)) ORDER BY created DESC, id DESC`, tenant)
}

func (tx *Tx) builds(ctx context.Context, where string, args ...any) ([]Build, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+buildColumns+` FROM builds WHERE `+where, args...)
	out, err := collect(rows, err, func(r *sql.Rows) (Build, error) { return scanBuild(r.Scan) })
	return out, wrap(err, "read builds")
}

// BuildByID returns one build, or ErrNotFound.
func (tx *Tx) BuildByID(ctx context.Context, tenant, id string) (Build, error) {
	b, err := scanBuild(tx.QueryRowContext(ctx, `SELECT `+buildColumns+` FROM builds WHERE tenant = ? AND id = ?`, tenant, id).Scan)
	return b, oneRow(err, "build "+id)
}

// Engine is a built and proven engine.
type Engine struct {
	Tenant       string
	Key          string
	Scope        string
	Model        string
	ModelVersion int64
	Recipe       string
	Target       string
	Plan         string
	Record       string // signed by the device
	BuilderKey   []byte // SPKI of the device
	Seal         string
	Provenance   string
	Timing       string
	TimingSize   int64
	TimingClass  string
	Log          string
	Build        string
	Created      time.Time
}

const engineColumns = `tenant, key, scope, model, model_version, recipe, target, plan, record, builder_key, seal, provenance, timing, timing_size, timing_class, log, build, created`

func scanEngine(scan func(...any) error) (Engine, error) {
	var e Engine
	var created int64
	err := scan(&e.Tenant, &e.Key, &e.Scope, &e.Model, &e.ModelVersion, &e.Recipe, &e.Target, &e.Plan, &e.Record, &e.BuilderKey, &e.Seal, &e.Provenance, &e.Timing, &e.TimingSize,
		&e.TimingClass, &e.Log, &e.Build, &created)
	e.Created = fromMillis(created)
	return e, err
}

// AddEngine stores an engine; its key is taken once.
func (tx *Tx) AddEngine(ctx context.Context, e Engine) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO engines (`+engineColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, e.Tenant, e.Key, e.Scope, e.Model, e.ModelVersion,
		e.Recipe, e.Target, e.Plan, e.Record, e.BuilderKey, e.Seal, e.Provenance, e.Timing, e.TimingSize, e.TimingClass, e.Log, e.Build, millis(e.Created))
	return wrap(err, "store engine "+e.Key)
}

// Engines returns the engines of a tenant, newest first.
func (tx *Tx) Engines(ctx context.Context, tenant string) ([]Engine, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+engineColumns+` FROM engines WHERE tenant = ? ORDER BY created DESC, key`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Engine, error) { return scanEngine(r.Scan) })
	return out, wrap(err, "read engines")
}

// EngineByKey returns the engine of a key that all devices of its target may
// load, or ErrNotFound.
func (tx *Tx) EngineByKey(ctx context.Context, tenant, key string) (Engine, error) {
	e, err := scanEngine(tx.QueryRowContext(ctx, `SELECT `+engineColumns+` FROM engines WHERE tenant = ? AND key = ? AND scope = ''`, tenant, key).Scan)
	return e, oneRow(err, "engine "+key)
}

// TimingCache returns the newest timing cache for a class of devices, or
// ErrNotFound.
func (tx *Tx) TimingCache(ctx context.Context, tenant, class string) (digest string, size int64, err error) {
	err = tx.QueryRowContext(ctx, `SELECT timing, timing_size FROM engines WHERE tenant = ? AND timing_class = ? AND timing <> '' ORDER BY created DESC LIMIT 1`,
		tenant, class).Scan(&digest, &size)
	return digest, size, oneRow(err, "timing cache for "+class)
}

// Recipe is a named recipe.
type Recipe struct {
	Tenant    string
	Name      string
	Digest    string
	Created   time.Time
	CreatedBy string
}

// AddRecipe stores a recipe; a name is taken once.
func (tx *Tx) AddRecipe(ctx context.Context, r Recipe) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO recipes (tenant, name, digest, created, created_by) VALUES (?,?,?,?,?)`, r.Tenant, r.Name, r.Digest, millis(r.Created), r.CreatedBy)
	return wrap(err, "store recipe "+r.Name)
}

// Recipes returns the recipes of a tenant by name.
func (tx *Tx) Recipes(ctx context.Context, tenant string) ([]Recipe, error) {
	rows, err := tx.QueryContext(ctx, `SELECT tenant, name, digest, created, created_by FROM recipes WHERE tenant = ? ORDER BY name`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Recipe, error) {
		var c Recipe
		var created int64
		err := r.Scan(&c.Tenant, &c.Name, &c.Digest, &created, &c.CreatedBy)
		c.Created = fromMillis(created)
		return c, err
	})
	return out, wrap(err, "read recipes")
}
