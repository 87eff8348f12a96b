%%% Logs callbacks that take too long while they still run, with their stack.
%%%
%%% A thread of the library looks at the workers, and tells of each job that has been running for
%%% `slow_callback_ms', and again whenever it has taken twice as long: so nothing of the BEAM is awake for
%%% those that are short. For one that is slow this process has Python's main thread take the stack, as
%%% soon as that can have the GIL. While C code holds the GIL nobody can; if that takes as long again,
%%% the callback is logged without its stack. So is what a worker does between callbacks, such as
%%% importing a protocol: it holds up the same connections.
%%%
%%% Messages: `{py_slow, Context, Glance}', from that thread; `{py_look, Tag, Seen}', what Python's main
%%% thread has seen.
-module(py_reactor_watchdog).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Report callback
-export([format/1]).

%% A look that Python's main thread was asked for.
-record(look, {
    tag :: non_neg_integer(),
    label :: py_reactor_pool:label()
}).

-record(state, {
    looks = #{} :: #{pid() => #look{}},
    next_tag = 0 :: non_neg_integer()
}).

%% From so long a wait on it is worth saying that somebody held the GIL. Python's threads give it to
%% each other every 5 ms.
-define(HELD_MS, 50).

%% @doc Starts it, unless the setting `slow_callback_ms' says that there is nothing to do.
-spec start_link(py_reactor_settings:settings()) -> gen_server:start_ret().
start_link(#{slow_callback_ms := Off}) when Off =:= 0; Off =:= infinity ->
    %% It may have been on before.
    ok = py_nif:watch_jobs(0),
    ignore;
start_link(#{slow_callback_ms := SlowMs}) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, SlowMs, []).

%% @private
-spec init(pos_integer()) -> {ok, #state{}}.
init(SlowMs) ->
    ok = py_nif:watch_jobs(SlowMs),
    {ok, #state{}}.

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
handle_info({py_slow, Pid, Glance}, State) ->
    case lists:keyfind(Pid, 1, py_reactor_pool:list()) of
        {Pid, Handle, Label, _Since} -> {noreply, slow(Pid, Handle, Label, Glance, State)};
        %% It has ended meanwhile.
        false -> {noreply, State}
    end;
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

slow(Pid, Handle, Label, Glance, #state{looks = Looks, next_tag = Tag} = State) ->
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
