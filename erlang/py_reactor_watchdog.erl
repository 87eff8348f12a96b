%%% Looks for callbacks that take too long, and logs them while they still run, with their stack.
%%%
%%% It asks every context which job its worker is in and since when, which takes neither the GIL nor a
%%% lock, and asks again when a job that it has seen would be overdue: so it notices each one within a
%%% millisecond or so of `slow_callback_ms', although it looks only once in that time. When all workers
%%% are idle it has the first that begins a job tell, and hardly looks at all. For one that is
%%% overdue it has Python's main thread take the stack, as soon as that can have the GIL. While C code
%%% holds the GIL nobody can; if that takes as long again, the callback is logged without its stack.
%%% Each callback is logged once, and again whenever it has taken twice as long. So is what a worker
%%% does between callbacks, such as importing a protocol: it holds up the same connections.
%%%
%%% Messages: `{timeout, Reminder, look}', its own reminder; `py_busy', from a worker that was idle;
%%% `{py_look, Tag, Seen}', what Python's main thread has seen.
-module(py_reactor_watchdog).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Report callback
-export([format/1]).

%% What is known of the job of one context.
-record(watch, {
    job :: pos_integer(),
    %% The age at which it is looked at next.
    due_ms :: pos_integer()
}).

%% A look that Python's main thread was asked for.
-record(look, {
    tag :: non_neg_integer(),
    label :: py_reactor_pool:label()
}).

-record(state, {
    slow_ms :: pos_integer(),
    reminder :: reference(),
    %% Whether all were idle: nothing was due at that time.
    idle = false :: boolean(),
    watches = #{} :: #{pid() => #watch{}},
    looks = #{} :: #{pid() => #look{}},
    next_tag = 0 :: non_neg_integer()
}).

%% A worker that begins a job in the very moment in which it is asked to tell may not do so; it is
%% noticed so much later.
-define(IDLE_MS, 1000).

%% From so long a wait on it is worth saying that somebody held the GIL. Python's threads give it to
%% each other every 5 ms.
-define(HELD_MS, 50).

%% @doc Starts it, unless the setting `slow_callback_ms' says that there is nothing to do.
-spec start_link(py_reactor_settings:settings()) -> gen_server:start_ret().
start_link(#{slow_callback_ms := Off}) when Off =:= 0; Off =:= infinity ->
    ignore;
start_link(#{slow_callback_ms := SlowMs}) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, SlowMs, []).

%% @private
-spec init(pos_integer()) -> {ok, #state{}}.
init(SlowMs) ->
    {ok, #state{slow_ms = SlowMs, reminder = remind(SlowMs)}}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({timeout, Reminder, look}, #state{reminder = Reminder} = State) ->
    {noreply, look(State)};
handle_info({timeout, _Cancelled, look}, State) ->
    {noreply, State};
handle_info(py_busy, #state{idle = true, slow_ms = SlowMs, reminder = Reminder} = State) ->
    %% The job has just begun.
    _ = erlang:cancel_timer(Reminder),
    {noreply, State#state{idle = false, reminder = remind(SlowMs)}};
handle_info(py_busy, State) ->
    {noreply, State};
handle_info({py_look, Tag, Seen}, #state{looks = Looks} = State) ->
    %% A look from before a restart of this process is nobody's.
    case [{Pid, Look} || {Pid, #look{tag = T} = Look} <- maps:to_list(Looks), T =:= Tag] of
        [{Pid, Look}] ->
            seen(Pid, Look, Seen),
            {noreply, State#state{looks = maps:remove(Pid, Looks)}};
        [] ->
            {noreply, State}
    end;
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%% @doc How a line is printed: what, whose, how long, and the stack below it.
-spec format(logger:report()) -> {io:format(), [term()]}.
format(#{stack := Stack} = Report) ->
    #{protocol := Protocol, callback := Callback, age_ms := AgeMs, waited_ms := WaitedMs} = Report,
    Of = [[" of ", Peer] || #{peer := Peer} <- [Report], Peer =/= <<>>],
    Held = [
        io_lib:format(" (its stack could not be had for ~b ms: the GIL was held)", [WaitedMs])
     || WaitedMs >= ?HELD_MS
    ],
    {
        "~ts~ts has been running for ~b ms~ts~nStack (most recent call last):~n~ts",
        [what(Callback, [Protocol, $.]), Of, AgeMs, Held, Stack]
    };
format(#{callback := Callback, fd := Fd, age_ms := AgeMs}) ->
    {
        "~ts~ts has been running for ~b ms; its stack cannot be had, as the GIL is held",
        [what(Callback, ""), [io_lib:format(" of descriptor ~b", [Fd]) || is_integer(Fd)], AgeMs]
    }.

what(none, _Whose) -> "work between callbacks";
what(Callback, Whose) -> [Whose, Callback].

%%--------------------------------------------------------------------------------------------------

remind(WaitMs) ->
    erlang:start_timer(WaitMs, self(), look).

look(#state{slow_ms = SlowMs, watches = Watches} = State) ->
    Contexts = py_reactor_pool:list(),
    Known = maps:with([Pid || {Pid, _, _, _} <- Contexts], Watches),
    {WaitMs, Next} = lists:foldl(fun watch/2, {SlowMs, State#state{watches = Known}}, Contexts),
    case Next#state.watches of
        None when map_size(None) =:= 0 ->
            %% What begins from here on tells.
            _ = [ok = py_nif:context_await_job(Handle) || {_, Handle, _, _} <- Contexts],
            Next#state{idle = true, reminder = remind(max(SlowMs, ?IDLE_MS))};
        _ ->
            Next#state{idle = false, reminder = remind(WaitMs)}
    end.

watch({Pid, Handle, Label, _Since}, {WaitMs, #state{watches = Watches} = State}) ->
    case py_nif:context_glance(Handle) of
        none ->
            {WaitMs, State#state{watches = maps:remove(Pid, Watches)}};
        #{age_ms := AgeMs} = Glance ->
            #watch{due_ms = DueMs} = Watch = known(Glance, maps:get(Pid, Watches, none), State),
            case DueMs - AgeMs of
                LeftMs when LeftMs > 0 ->
                    {min(WaitMs, LeftMs), State#state{watches = Watches#{Pid => Watch}}};
                _ ->
                    Next = Watch#watch{due_ms = doubled(DueMs, AgeMs)},
                    Overdue = overdue(Pid, Handle, Label, Glance, State),
                    {WaitMs, Overdue#state{watches = Watches#{Pid => Next}}}
            end
    end.

known(#{job := Job}, #watch{job = Job} = Watch, _State) -> Watch;
known(#{job := Job}, _, #state{slow_ms = SlowMs}) -> #watch{job = Job, due_ms = SlowMs}.

doubled(DueMs, AgeMs) when DueMs > AgeMs -> DueMs;
doubled(DueMs, AgeMs) -> doubled(2 * DueMs, AgeMs).

overdue(Pid, Handle, Label, Glance, #state{looks = Looks, next_tag = Tag} = State) ->
    case Looks of
        #{Pid := _} ->
            %% The last look is still not answered: somebody holds the GIL.
            report(Pid, Label, Glance),
            State;
        #{} ->
            ok = py_nif:context_look(Handle, maps:get(job, Glance), Tag),
            Look = #look{tag = Tag, label = Label},
            State#state{looks = Looks#{Pid => Look}, next_tag = Tag + 1}
    end.

seen(Pid, #look{label = Label}, {ok, Seen}) ->
    report(Pid, Label, Seen);
seen(_Pid, _Look, ended) ->
    ok;
seen(Pid, #look{label = Label}, {error, Traceback}) ->
    ?LOG_ERROR(#{what => no_stack, context => Label, pid => Pid, traceback => Traceback}).

report(Pid, Label, Seen) ->
    Measurements = maps:with([age_ms, waited_ms], Seen),
    Metadata = (maps:without([age_ms, waited_ms, job], Seen))#{context => Label, pid => Pid},
    ?LOG_WARNING(
        maps:merge(Metadata#{what => slow_callback}, Measurements),
        #{report_cb => fun ?MODULE:format/1}
    ),
    py_reactor_events:execute([py_reactor, callback, slow], Measurements, Metadata).
