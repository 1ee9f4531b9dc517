/* The ledger's protocol: who may send a mail, and who may say what became of it.
 *
 * Read docs/proof.md first. `python proof/run.py` checks this model, and that it breaks where a guard is
 * taken out. Each step below is one atomic step of the real system: one transaction of the ledger (it locks
 * the row, decides, and writes where state and fence are still what it read: ledger/batch.py, ledger/changes.py),
 * or one thing that a worker, a server or the broker does. Between any two of them anything else may
 * happen: a process may stand still there, or die.
 *
 *   -DDELIVERIES=1      recipients                   -DRESENDS=1   `retry uncertain`, for each recipient
 *   -DWORKERS=2         attempts at one time, each in a process of its own
 *   -DFAULTS=3          how much may go wrong in all; left out: anything, any number of times
 *   -DLATE_STATEMENTS   what an attempt asked of the database, and gave up waiting for, may be done much later
 *   -DPLAIN_FENCES      fences count up for ever; else they are renumbered (see `renumber`)
 *   -DONLY=NOT_TWICE    looks at this one property alone
 *   -DWITHOUT_...       takes a guard out
 *   -DIF_...            takes an assumption away that docs/proof.md says we need
 *   -DSTALE_DOTS        lets a dot be stale, to see what else breaks then
 *
 * A step that is a fault asks MAY_FAIL first. `healed` ends all faults for good; the step that sets it may come
 * at any moment, or never. What an operator does is limited in the same way.
 */

#ifndef DELIVERIES
#define DELIVERIES 1
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef RESENDS
#define RESENDS 1
#endif
#define SERVERS 2

#ifdef FAULTS
#define MAY_FAIL (!healed && faults < FAULTS)
#define FAILS    faults++
byte faults;
#else
#define MAY_FAIL (!healed)
#define FAILS    skip
#endif

bool healed;

/* The properties. Their statements are in `check`, and where PROMISED stands. */
#define NOT_TWICE        1
#define NOT_FORGOTTEN    2
#define SENT_IS_ACCEPTED 3
#define FINISHED_IS_OVER 4
#define NOT_STALE        5
#define STOP_STOPS       6
#define NOT_AGAIN        7
#define NOT_LOST         8
#ifndef ONLY
#define ONLY 0
#endif
#define PROMISED(property, fact) assert((ONLY != 0 && ONLY != property) || (fact))

/* ------------------------------------------------------------------ what the database holds (durable) */

mtype:status = { running, paused, stopped, finished };          /* stopped: the campaign was cancelled */
mtype:state  = { pending, queued, claimed, committing, sent, failed, uncertain, cancelled };

mtype:status status = running;
mtype:state state[DELIVERIES] = pending;
byte server[DELIVERIES];
byte fence[DELIVERIES];
bool lease_over[DELIVERIES];              /* by the database's clock: lease_until <= now */

/* ------------------------------------------------------------------ the broker: a hint, no more */

typedef Queue { bool has[DELIVERIES] };
Queue queue[SERVERS];                     /* one message or more for that delivery, in that server's queue */
bool unpublished[DELIVERIES];             /* committed as queued by somebody who is about to publish it */

/* ------------------------------------------------------------------ the attempts (lost in a crash) */

mtype:step = { idle, received, holding, granted, looked, at_dot, recording, journaled,
               asked_claim, asked_commit, asked_record };
/*  idle       waits for a message
 *  received   has a message, and no more                                   Attempt._deliver
 *  holding    has claimed; renders, connects, hands over the body          Attempt._send
 *  granted    the commit point is durable, and the attempt knows it        Transaction._commit
 *  looked     has seen that its lease holds, and will write the dot next; only IF_FROZEN_AT_THE_WRITE
 *  at_dot     the dot is handed to the network; waits for the reply        Transaction._dot
 *  recording  knows how it ended; the ledger does not                      Attempt._settle
 *  journaled  the ledger could not be told: it is in the journal, on disk  workers/journal.py
 *  asked_...  no attempt, but a statement that one sent and gave up: the database may still do it
 */
mtype:wire = { nothing, dot, reply_2yz, reply_4yz, reply_5yz }; /* between the attempt and its server */

typedef Attempt {
    mtype:step step;
    mtype:wire wire;
    byte delivery;
    byte via;                             /* the server */
    byte fence;
    bool clock_over;                      /* the lease is over by this process's own clock */
    mtype:state outcome;                  /* what it wants recorded ... */
    byte next;                            /* ... and for which server, where that is `queued` */
    bool latest;                          /* only for the proof: nobody has claimed or retried since */
};
#ifdef LATE_STATEMENTS
#define SLOTS (2 * WORKERS)               /* each attempt, and then each one's late statement */
#else
#define SLOTS WORKERS
#endif
Attempt a[SLOTS];

#ifdef WITHOUT_LOOKING_AGAIN
bool seen_idle;
#endif

/* ------------------------------------------------------------------ what the proof remembers (nobody else) */

byte accepted[DELIVERIES];                /* how often a server took responsibility for the mail */
byte resends[DELIVERIES];                 /* how often the operator said: send the uncertain one again */
bool told[DELIVERIES];                    /* the ledger was told of a 250 for it, and could use it */

/* ------------------------------------------------------------------ words */

#define HELD(d)   (state[d] == claimed || state[d] == committing)
#define ALIVE(d)  (state[d] == pending || state[d] == queued || HELD(d))
#define FINAL(d)  (!ALIVE(d))
#define TAKEN(d)  (state[d] == committing || state[d] == sent || state[d] == uncertain)
#define MINE(w)   (a[w].fence == fence[a[w].delivery])
#define WORKS(w)  (a[w].step == holding || a[w].step == granted || a[w].step == looked || a[w].step == at_dot \
                   || a[w].step == recording)
#define KNOWS(w)  (a[w].step != idle && a[w].step != received && a[w].step != asked_claim)  /* a fence that matters */

#if DELIVERIES == 1
#define ALL_FINAL FINAL(0)
#elif DELIVERIES == 2
#define ALL_FINAL (FINAL(0) && FINAL(1))
#else
#define ALL_FINAL (FINAL(0) && FINAL(1) && FINAL(2))
#endif
#define DONE ((status == finished || status == stopped) && ALL_FINAL)

/* ------------------------------------------------------------------ the promise */

/* Looked at after every step that changes a delivery, its campaign, or what a server has accepted. */
inline check(d) {
    /* An acceptance more than the operator asked for is one too many. */
    PROMISED(NOT_TWICE, accepted[d] <= 1 + resends[d]);
    /* What a server accepted (since the last resend) is sent or uncertain, or its attempt is still at it. */
    PROMISED(NOT_FORGOTTEN, accepted[d] <= resends[d] || TAKEN(d));
    PROMISED(SENT_IS_ACCEPTED, state[d] != sent || accepted[d] > 0);
    PROMISED(FINISHED_IS_OVER, status != finished || FINAL(d))
}

/* Nobody is lost: once the faults end, every run comes to where everybody is final, and stays there. */
ltl nobody_is_lost { (<> [] DONE) || ([] !healed) }

/* ------------------------------------------------------------------ fences */

/* Fences are only ever compared, so only their order matters: the values that nobody holds any more are closed
 * up, and a state in which the fences are 7 and 9 is the same as one in which they are 0 and 1. This makes
 * "any number of faults" a finite thing. Where a broken fence is studied, -DPLAIN_FENCES leaves them alone.
 */
byte n, i, used, x;                       /* scratch: 0 between any two steps */

inline renumber(d) {
#ifndef PLAIN_FENCES
    n = 0;
    do
    :: n < fence[d] ->
        used = 0; i = 0;
        do
        :: i < SLOTS -> used = used + (KNOWS(i) && a[i].delivery == d && a[i].fence == n); i++
        :: else -> break
        od;
        if
        :: used > 0 -> n++
        :: else ->
            fence[d]--; i = 0;
            do
            :: i < SLOTS ->
                if
                :: KNOWS(i) && a[i].delivery == d && a[i].fence > n -> a[i].fence--
                :: else
                fi;
                i++
            :: else -> break
            od
        fi
    :: else -> break
    od;
    n = 0; i = 0; used = 0;
#endif
    skip
}

inline raise_fence(d) {
    fence[d]++;
    i = 0;
    do
    :: i < SLOTS -> a[i].latest = a[i].latest && a[i].delivery != d; i++
    :: else -> break
    od;
    i = 0
}

/* ------------------------------------------------------------------ ledger/row.py: the steps of a row */

inline reopen(d) {                        /* changes.py _reopen: a finished campaign with somebody alive runs */
    if :: status == finished && ALIVE(d) -> status = running :: else fi
}

inline waiting(d) {                       /* Row.waiting */
    if :: status == stopped -> state[d] = cancelled :: else -> state[d] = pending fi;
#ifdef WITHOUT_RISING_FENCE
    if :: fence[d] > 0 -> fence[d]-- :: else fi;
#endif
    reopen(d)
}

inline to_queue(d, s) {                   /* Row.queued; whoever does it publishes it next, if he lives */
    if
    :: status == running -> state[d] = queued; server[d] = s; unpublished[d] = true
    :: else -> waiting(d)
    fi
}

/* ------------------------------------------------------------------ ledger/rules.py: claim */

#ifdef WITHOUT_CLAIM_CONDITION
#define MAY_CLAIM(d, s) (status == running && !(state[d] == sent || state[d] == failed || state[d] == cancelled))
#else
#define MAY_CLAIM(d, s) (state[d] == queued && server[d] == s && status == running)
#endif

inline claim(d) {                         /* Row.claimed */
    state[d] = claimed;
    lease_over[d] = false;
    unpublished[d] = false;
#ifdef WITHOUT_CLAIM_RAISING_FENCE
    i = 0;
    do
    :: i < SLOTS -> a[i].latest = a[i].latest && a[i].delivery != d; i++
    :: else -> break
    od;
    i = 0
#else
    raise_fence(d)
#endif
}

/* ------------------------------------------------------------------ ledger/rules.py: commit_point */

#ifdef WITHOUT_FENCE_AT_COMMIT_POINT
#define FENCE_HOLDS(w) true
#else
#define FENCE_HOLDS(w) MINE(w)
#endif
#ifdef WITHOUT_STATUS_AT_COMMIT_POINT
#define STATUS_HOLDS true
#else
#define STATUS_HOLDS (status == running)
#endif
#ifdef WITHOUT_LEASE_AT_COMMIT_POINT
#define LEASE_HOLDS(w) true
#else
#define LEASE_HOLDS(w) (!lease_over[a[w].delivery])
#endif
#define MAY_COMMIT(w) (state[a[w].delivery] == claimed && FENCE_HOLDS(w) && LEASE_HOLDS(w) && STATUS_HOLDS)

inline commit_point(w) {
    /* No transition by a stale attempt; pause and cancel stop what is before its dot. */
    PROMISED(NOT_STALE, a[w].latest);
    PROMISED(STOP_STOPS, status == running);
    /* What the ledger knows to be delivered is not sent again. */
    PROMISED(NOT_AGAIN, !told[a[w].delivery]);
    state[a[w].delivery] = committing
}

/* ------------------------------------------------------------------ ledger/rules.py: record */

#ifdef WITHOUT_FENCE_AT_RECORD
#define RECORD_IS_MINE(w, d) true
#else
#define RECORD_IS_MINE(w, d) MINE(w)
#endif
#define GOES_ON(w)    (a[w].outcome == pending || a[w].outcome == queued || a[w].outcome == failed)
#define RELEASABLE(d) (HELD(d) || state[d] == uncertain)

/* _takes_a_definite_250 */
#ifdef WITHOUT_LATE_250
#define TAKES_250(w, d) (MINE(w) && RELEASABLE(d))
#else
#define TAKES_250(w, d) ((state[d] == uncertain && MINE(w)) || state[d] == claimed || state[d] == pending \
                         || state[d] == queued || (state[d] == committing && MINE(w)))
#endif

/* For the proof: a 250 that must count. Not where the row is final by another word, or a newer attempt, which
 * the operator asked for, is past its commit point. */
#ifdef IF_EVERY_250_COUNTED
#define COUNTS(w, d) true
#else
#define COUNTS(w, d) ((state[d] == uncertain && a[w].latest) || (ALIVE(d) && (state[d] != committing || a[w].latest)))
#endif

inline record(w, d) {
    if
    :: a[w].fence > fence[d] -> skip      /* no row is older than its own attempt */
    :: a[w].fence <= fence[d] && a[w].outcome == sent ->
        told[d] = told[d] || COUNTS(w, d);
        if :: TAKES_250(w, d) -> state[d] = sent :: else fi
    :: a[w].fence <= fence[d] && a[w].outcome == uncertain && state[d] == committing && RECORD_IS_MINE(w, d) ->
        PROMISED(NOT_STALE, a[w].latest);
        state[d] = uncertain
    :: a[w].fence <= fence[d] && GOES_ON(w) && RELEASABLE(d) && RECORD_IS_MINE(w, d) ->
        PROMISED(NOT_STALE, a[w].latest);
        if
        :: a[w].outcome == failed -> state[d] = failed
        :: a[w].outcome == queued -> to_queue(d, a[w].next)
        :: a[w].outcome == pending -> waiting(d)
        fi
    :: else                               /* the row is not this attempt's to change */
    fi;
    check(d)
}

/* ------------------------------------------------------------------ the steps of an attempt */

inline forget(w) {                        /* the process is gone, or the attempt is over */
    a[w].step = idle; a[w].wire = nothing; a[w].delivery = 0; a[w].via = 0; a[w].fence = 0;
    a[w].clock_over = false; a[w].outcome = pending; a[w].next = 0; a[w].latest = false
}

inline ends_as(w, what, s) {
    a[w].step = recording; a[w].wire = nothing; a[w].outcome = what; a[w].next = s
}

inline write_dot(w) {
    a[w].step = at_dot; a[w].wire = dot
}

inline accept(d) {
    accepted[d]++; check(d)
}

#define D a[w].delivery
#define OTHER (1 - a[w].via)

proctype Worker(byte w) {
end:
    do
    /* ---- claim: Attempt._claim, Ledger.apply */
    :: d_step { a[w].step == received && MAY_CLAIM(D, a[w].via) ->
        x = D; claim(x);
        a[w].step = holding; a[w].fence = fence[x]; a[w].latest = true; renumber(x); check(x); x = 0 }
    :: d_step { a[w].step == received && !MAY_CLAIM(D, a[w].via) -> forget(w) }   /* a message too many */
    :: d_step { a[w].step == received && MAY_CLAIM(D, a[w].via) && MAY_FAIL -> FAILS;
        x = D; claim(x); forget(w); renumber(x); x = 0 }              /* claimed, and the reply was lost */

#ifdef IF_SERVER_TOOK_HALF_A_MAIL         /* a server delivers a mail whose dot it never got */
    :: d_step { a[w].step == holding && MAY_FAIL -> FAILS; x = D; accept(x); x = 0; ends_as(w, pending, 0) }
#endif
    /* ---- before the dot nothing is decided: refused by the server, shut down, unreachable, no database */
    :: d_step { a[w].step == holding -> ends_as(w, failed, 0) }
    :: d_step { a[w].step == holding && MAY_FAIL -> FAILS; ends_as(w, pending, 0) }
    :: d_step { a[w].step == holding && MAY_FAIL -> FAILS; ends_as(w, queued, OTHER) }

    /* ---- the body is on the wire; the commit point: Attempt._commit_point */
#ifdef WITHOUT_COMMIT_POINT
    :: d_step { a[w].step == holding && !a[w].clock_over -> write_dot(w) }
#else
    :: d_step { a[w].step == holding && MAY_COMMIT(w) -> commit_point(w); x = D; check(x); x = 0; a[w].step = granted }
    :: d_step { a[w].step == holding && !MAY_COMMIT(w) -> ends_as(w, pending, 0) }             /* Stop.FENCED */
#ifdef WITHOUT_WAITING_FOR_COMMIT
    :: d_step { a[w].step == holding && MAY_FAIL -> FAILS; a[w].step = granted }
#else
    :: d_step { a[w].step == holding && MAY_FAIL -> FAILS; ends_as(w, pending, 0) }          /* Stop.DATABASE */
#endif
    :: d_step { a[w].step == holding && MAY_COMMIT(w) && MAY_FAIL -> FAILS;
        commit_point(w); x = D; check(x); x = 0; ends_as(w, pending, 0) }         /* done, and the reply to COMMIT was lost */
#endif

    /* ---- the dot: Transaction._commit, _dot. Nothing is awaited between the look at the clock and the write,
     *      so they are one step here */
    /*      That is an assumption: no process is frozen just there for longer than is left of its lease. No code
     *      can see to it, as no server looks at a fence. IF_FROZEN_AT_THE_WRITE makes two steps of it. */
#ifdef WITHOUT_LEASE_AT_DOT
    :: d_step { a[w].step == granted ->
#else
    :: d_step { a[w].step == granted && a[w].clock_over -> ends_as(w, pending, 0) }             /* Stop.LEASE */
#ifdef IF_FROZEN_AT_THE_WRITE
    :: d_step { a[w].step == granted && !a[w].clock_over -> a[w].step = looked }          /* the look */
    :: d_step { a[w].step == looked ->                                   /* the write, whenever the look was */
#else
    :: d_step { a[w].step == granted && !a[w].clock_over ->
#endif
#endif
#ifndef STALE_DOTS
        /* No dot by an attempt whose delivery is another's, or the operator's, by now. */
        PROMISED(NOT_STALE, a[w].latest && state[D] == committing);
#endif
        write_dot(w) }
    :: d_step { a[w].step == granted && MAY_FAIL -> FAILS; ends_as(w, pending, 0) }  /* the server hung up, shutdown */

    /* ---- the reply: classify, decide */
    :: d_step { a[w].step == at_dot && a[w].wire == reply_2yz -> ends_as(w, sent, 0) }
    :: d_step { a[w].step == at_dot && a[w].wire == reply_5yz -> ends_as(w, failed, 0) }
    :: d_step { a[w].step == at_dot && a[w].wire == reply_4yz -> ends_as(w, pending, 0) }
    :: d_step { a[w].step == at_dot && a[w].wire == reply_4yz -> ends_as(w, queued, OTHER) }
#ifdef WITHOUT_UNCERTAIN
    :: d_step { a[w].step == at_dot && a[w].wire == nothing -> ends_as(w, pending, 0) }
#else
#ifdef WITHOUT_DOUBT
    :: d_step { a[w].step == at_dot && a[w].wire == nothing -> ends_as(w, sent, 0) }
#else
    :: d_step { a[w].step == at_dot && a[w].wire == nothing -> ends_as(w, uncertain, 0) }  /* silence, hang-up, garbage */
#endif
#endif

    /* ---- the record: Attempt._settle, Ledger.apply, Services.keep */
    :: d_step { a[w].step == recording -> x = D; record(w, x); forget(w); renumber(x); x = 0 }
    :: d_step { a[w].step == recording && MAY_FAIL -> FAILS; a[w].step = journaled }     /* no database: nothing written */
    :: d_step { a[w].step == recording && MAY_FAIL -> FAILS; x = D; record(w, x); x = 0; a[w].step = journaled } /* only the reply lost */

    /* ---- the journal: whoever finds it replays it; this process claims nothing before */
    :: d_step { a[w].step == journaled -> x = D; record(w, x); forget(w); renumber(x); x = 0 }
    :: d_step { a[w].step == journaled && MAY_FAIL -> FAILS; x = D; record(w, x); x = 0 }          /* died before the file was removed */
    :: d_step { a[w].step == journaled && MAY_FAIL -> FAILS; x = D; forget(w); renumber(x); x = 0 }     /* disk lost */

    /* ---- the lease: LeaseKeeper. The own clock is over before the database's (it counts from before the claim) */
    :: d_step { WORKS(w) && !a[w].clock_over && MAY_FAIL -> FAILS; a[w].clock_over = true }
    :: d_step { WORKS(w) && a[w].clock_over && HELD(D) && MINE(w) ->
        PROMISED(NOT_STALE, a[w].latest); a[w].clock_over = false; lease_over[D] = false }                    /* renewed */

    /* ---- the process dies. Of a dot on its way nobody will ever know: the server takes it, or does not */
    :: d_step { (WORKS(w) || a[w].step == received) && MAY_FAIL -> FAILS; x = D; forget(w); renumber(x); x = 0 }
    :: d_step { a[w].step == at_dot && a[w].wire == dot && MAY_FAIL -> FAILS;
        x = D; accept(x); forget(w); renumber(x); x = 0 }
    od
}

/* ------------------------------------------------------------------ the database, long after it was asked
 * (a partition: the client has given up and reconnected, the old statement was still on its way) */

#ifdef LATE_STATEMENTS
inline leave_behind(w, what) {
    x = w + WORKERS;
    a[x].step = what; a[x].delivery = D; a[x].via = a[w].via; a[x].fence = a[w].fence;
    a[x].outcome = a[w].outcome; a[x].next = a[w].next; a[x].latest = a[w].latest;
    x = 0
}

#define FREE(v) (a[v].step == idle)

proctype Asking(byte w; byte v) {         /* v: the place of its late statement */
end:
    do
    :: d_step { a[w].step == received && FREE(v) && MAY_FAIL -> FAILS; leave_behind(w, asked_claim); forget(w) }
    :: d_step { a[w].step == holding && FREE(v) && MAY_FAIL -> FAILS; leave_behind(w, asked_commit); ends_as(w, pending, 0) }
    :: d_step { a[w].step == recording && FREE(v) && MAY_FAIL -> FAILS; leave_behind(w, asked_record); a[w].step = journaled }
    :: d_step { a[v].step == asked_claim && MAY_CLAIM(a[v].delivery, a[v].via) ->
        x = a[v].delivery; claim(x); forget(v); renumber(x); check(x); x = 0 }
    :: d_step { a[v].step == asked_claim && !MAY_CLAIM(a[v].delivery, a[v].via) -> forget(v) }
    :: d_step { a[v].step == asked_commit && MAY_COMMIT(v) ->
        commit_point(v); x = a[v].delivery; forget(v); renumber(x); check(x); x = 0 }
    :: d_step { a[v].step == asked_commit && !MAY_COMMIT(v) -> x = a[v].delivery; forget(v); renumber(x); x = 0 }
    :: d_step { a[v].step == asked_record -> x = a[v].delivery; record(v, x); forget(v); renumber(x); x = 0 }
    od
}
#endif

/* ------------------------------------------------------------------ what a mail server does with a dot */

proctype Server(byte w) {
end:
    do
    :: d_step { a[w].wire == dot -> x = D; accept(x); x = 0; a[w].wire = reply_2yz }                         /* accepted */
    :: d_step { a[w].wire == dot && MAY_FAIL -> FAILS; x = D; accept(x); x = 0; a[w].wire = nothing }     /* accepted, and its reply lost */
    :: d_step { a[w].wire == dot -> a[w].wire = reply_5yz }                                         /* refused for good */
    :: d_step { a[w].wire == dot && MAY_FAIL -> FAILS; a[w].wire = reply_4yz }                       /* refused for now */
#ifdef IF_SERVER_LIED                     /* accepted, and it says that it was not */
    :: d_step { a[w].wire == dot && MAY_FAIL -> FAILS; x = D; accept(x); x = 0; a[w].wire = reply_4yz }
#endif
    :: d_step { a[w].wire == dot && MAY_FAIL -> FAILS; a[w].wire = nothing }                /* died, and has not got it */
    od
}

/* ------------------------------------------------------------------ the broker: one of these for each queue,
 * delivery and worker */

proctype Broker(byte s; byte d; byte w) {
end:
    do
    :: d_step { queue[s].has[d] && a[w].step == idle ->                                   /* delivered to a worker */
        queue[s].has[d] = false; a[w].step = received; a[w].delivery = d; a[w].via = s }
    :: d_step { queue[s].has[d] && a[w].step == idle && MAY_FAIL -> FAILS;                   /* delivered again, too */
        a[w].step = received; a[w].delivery = d; a[w].via = s }
    :: d_step { w == 0 && queue[s].has[d] && MAY_FAIL -> FAILS; queue[s].has[d] = false }    /* lost */
    od
}

/* ------------------------------------------------------------------ what every worker does beside its attempts */

#define NOBODYS(d, v) (!(WORKS(v) && a[v].delivery == d && a[v].latest && !a[v].clock_over))
#if WORKERS == 2
#define LEASE_ENDS(d) (NOBODYS(d, 0) && NOBODYS(d, 1))
#else
#define LEASE_ENDS(d) (NOBODYS(d, 0) && NOBODYS(d, 1) && NOBODYS(d, 2))
#endif

proctype Producer(byte d) {               /* Ledger.enqueue, then publish */
end:
    do
    :: d_step { state[d] == pending && status == running -> to_queue(d, 0) }          /* committed as queued, for server 0 */
    :: d_step { state[d] == pending && status == running -> to_queue(d, 1) }          /* committed as queued, for server 1 */
    :: d_step { unpublished[d] && state[d] == queued -> queue[server[d]].has[d] = true; unpublished[d] = false } /* published */
    :: d_step { unpublished[d] && MAY_FAIL -> FAILS; unpublished[d] = false }   /* whoever was to publish it died */
    :: d_step { unpublished[d] && state[d] != queued -> unpublished[d] = false }       /* too late: it waits no more */
    od
}

proctype Sweep(byte d) {
end:
    do
    /* ---- time passes: by the database's clock the lease is over, which no living holder may believe to hold */
    :: d_step { HELD(d) && !lease_over[d] && LEASE_ENDS(d) -> lease_over[d] = true }

#ifdef IF_CLOCK_STOOD_STILL               /* the worker's machine was frozen, and its clock with it */
    :: d_step { HELD(d) && !lease_over[d] && MAY_FAIL -> FAILS; lease_over[d] = true }
#endif
#ifdef IF_DATABASE_FORGOT                 /* a standby that had not got the last commit took over */
    :: d_step { state[d] == committing && MAY_FAIL -> FAILS; state[d] = claimed }
#endif

    /* ---- Ledger.sweep_leases, rules.swept */
#ifndef WITHOUT_SWEEP
    :: d_step { state[d] == claimed && lease_over[d] -> lease_over[d] = false; waiting(d); check(d) }
    :: d_step { state[d] == claimed && lease_over[d] && status != stopped && MAY_FAIL -> FAILS;
        lease_over[d] = false; state[d] = failed; check(d) }                            /* max_crashes: poison */
#ifdef WITHOUT_HOLDING_COMMITTING
    :: d_step { state[d] == committing && lease_over[d] -> lease_over[d] = false; waiting(d); check(d) }
#else
    :: d_step { state[d] == committing && lease_over[d] -> lease_over[d] = false; state[d] = uncertain; check(d) }
#endif
#endif

    /* ---- a queue whose server is down, or that nobody reads: Ledger.reroute_queued, withdraw_queued, Move */
    :: d_step { state[d] == queued && status == running && MAY_FAIL -> FAILS; to_queue(d, 1 - server[d]) }
    :: d_step { state[d] == queued && status == running && MAY_FAIL -> FAILS; unpublished[d] = false; waiting(d) }
#ifdef WITHOUT_HOLDING_UNCERTAIN
    :: d_step { state[d] == uncertain && status == running && MAY_FAIL -> FAILS; to_queue(d, 1 - server[d]); check(d) }
#endif

    /* ---- Sweeper._republish_lost, and what resume does */
#ifndef WITHOUT_REPUBLISHING
    :: d_step { state[d] == queued && status == running && !unpublished[d] && !queue[server[d]].has[d] ->
        queue[server[d]].has[d] = true }
#endif
    od
}

/* ------------------------------------------------------------------ the campaign, and the operator */

proctype Campaign() {
end:
    do
    :: d_step { status == running && MAY_FAIL -> FAILS; status = paused }              /* pause */
    :: d_step { status == paused -> status = running }                                 /* resume */
    :: d_step { (status == running || status == paused) && MAY_FAIL -> FAILS; status = stopped } /* cancel */
    /* ---- Leases.finish_idle looks, and then _finish looks again, with the campaign locked */
#ifdef WITHOUT_LOOKING_AGAIN
    :: d_step { status == running && ALL_FINAL -> seen_idle = true }
    :: d_step { seen_idle -> seen_idle = false; if :: status == running -> status = finished :: else fi; check(0) }
#else
    :: d_step { status == running && ALL_FINAL -> status = finished; check(0) }
#endif
    od
}

proctype Operator(byte d) {
end:
    do
    /* ---- cancel, in chunks after the status; the sweep does the same to what is stranded */
#ifdef WITHOUT_SPARING_COMMITTING
    :: d_step { status == stopped && ALIVE(d) -> state[d] = cancelled; lease_over[d] = false; check(d) }
#else
    :: d_step { status == stopped && (state[d] == pending || state[d] == queued || state[d] == claimed) ->
        state[d] = cancelled; lease_over[d] = false; check(d) }
#endif

    /* ---- retry: CampaignSide.retry */
    :: d_step { state[d] == failed && status != stopped && MAY_FAIL -> FAILS;
        raise_fence(d); waiting(d); renumber(d); check(d) }
    :: d_step { state[d] == uncertain && status != stopped && resends[d] < RESENDS && MAY_FAIL -> FAILS;
        resends[d]++; raise_fence(d); waiting(d); renumber(d); check(d) }
    od
}

proctype Healing() {
end:
    d_step { !healed -> healed = true }   /* from here on nothing fails any more */
}

/* No run ends anywhere else. */
proctype Watch() {
end:
    timeout -> PROMISED(NOT_LOST, DONE)   /* nobody can do anything any more */
}

init {
    byte d, w, s;
    atomic {
        for (w : 0 .. SLOTS - 1) { a[w].step = idle; a[w].wire = nothing; a[w].outcome = pending }
        for (w : 0 .. WORKERS - 1) {
            run Worker(w);
            run Server(w);
#ifdef LATE_STATEMENTS
            run Asking(w, w + WORKERS);
#endif
            for (d : 0 .. DELIVERIES - 1) {
                for (s : 0 .. SERVERS - 1) { run Broker(s, d, w) }
            }
        }
        for (d : 0 .. DELIVERIES - 1) { run Producer(d); run Sweep(d); run Operator(d) }
        run Campaign();
        run Healing();
        run Watch();
        d = 0; w = 0; s = 0
    }
}
