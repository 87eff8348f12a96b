%%% Knows every context: finds the one of a process, and picks the one for the next connection.
%%%
%%% The list is a table that callers read by themselves; this process only keeps it true. It takes a
%%% context in when that starts, and out when it goes down. If a context went down without closing
%%% its connections, its worker does so as soon as its callback returns; a callback that does not
%%% return is interrupted, again and again, until the worker has ended.
%%%
%%% Messages: `{'DOWN', _, process, Pid, _}' of a context; `{reap, Handle}', its own reminder.
-module(py_reactor_pool).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1, make_table/0, join/2, next/0, find/1, contexts/0]).
-export([handles/1, pids/1, is_held_up/1, list/0]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type index() :: pos_integer() | none.
%% The place of a context in the default pool; `none' for one outside of it.

-export_type([label/0]).

-type label() :: pos_integer() | atom() | pid().
%% What a context is called, the same after a restart: its place in the default pool, or the name
%% under which it is registered. One that has neither is called by its pid.

%% Rows: {Pid, Handle, Label, Since} for every context, {{pool, Index}, Handle} for those of the pool,
%% {pool, Size, Turn} with an atomic counter that callers share, {handles, Handles} with all those
%% of the pool once more, for whoever wants them in one look, and {{ending, Handle}} for every context
%% that went down and whose worker may not have ended.
-define(TABLE, ?MODULE).

%% A context in the same turn for longer than this gets no new connections while another one has
%% time: a callback holds it up.
-define(BUSY_MS, 100).

%% How long a worker whose context went down may take to end before its callback is interrupted.
-define(REAP_MS, 1000).

-spec start_link(Size :: pos_integer()) -> gen_server:start_ret().
start_link(Size) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, Size, []).

%% @doc Makes the table. Called by the supervisor, so that it outlives this process.
-spec make_table() -> ok.
make_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    ok.

%% @doc Takes the calling context process in.
-spec join(py_nif:context(), index()) -> ok.
join(Handle, Index) ->
    gen_server:call(?MODULE, {join, self(), Handle, Index, label(Index)}).

label(Index) when is_integer(Index) ->
    Index;
label(none) ->
    case process_info(self(), registered_name) of
        {registered_name, Name} -> Name;
        [] -> self()
    end.

%% @doc The context for the next connection: in turn, but not one that a callback holds up while
%% another one has time.
-spec next() -> {ok, py_nif:context()} | {error, no_context}.
next() ->
    case lookup(pool) of
        [{pool, Size, Turn}] ->
            First = atomics:add_get(Turn, 1, 1),
            next(First, First + Size, Size, {error, no_context});
        [] ->
            {error, no_context}
    end.

next(Last, Last, _Size, Otherwise) ->
    Otherwise;
next(N, Last, Size, Otherwise) ->
    case lookup({pool, N rem Size + 1}) of
        [{_, Handle}] ->
            case is_held_up(Handle) of
                true -> next(N + 1, Last, Size, {ok, Handle});
                false -> {ok, Handle}
            end;
        [] ->
            next(N + 1, Last, Size, Otherwise)
    end.

%% @doc The context of a process.
-spec find(py_reactor_context:context()) -> {ok, py_nif:context()} | {error, no_context}.
find(Name) when is_atom(Name) ->
    case whereis(Name) of
        undefined -> {error, no_context};
        Pid -> find(Pid)
    end;
find(Pid) when is_pid(Pid) ->
    case lookup(Pid) of
        [{Pid, Handle, _, _}] -> {ok, Handle};
        [] -> {error, no_context}
    end.

%% The table goes when the application stops, which may be between two looks.
lookup(Key) ->
    try
        ets:lookup(?TABLE, Key)
    catch
        error:badarg -> []
    end.

%% @doc The contexts that are there now, of the default pool or of a list.
-spec handles(all | [py_reactor_context:context()]) -> [py_nif:context()].
handles(all) ->
    try
        ets:lookup_element(?TABLE, handles, 2)
    catch
        error:badarg -> []
    end;
handles(Contexts) ->
    [Handle || Context <- Contexts, {ok, Handle} <- [find(Context)]].

%% @doc The processes of those contexts.
-spec pids(all | [py_reactor_context:context()]) -> [pid()].
pids(Contexts) ->
    Handles = handles(Contexts),
    [Pid || {Pid, Handle, _, _} <- list(), lists:member(Handle, Handles)].

%% @doc Whether a callback of the context has been running for so long that others should be preferred.
-spec is_held_up(py_nif:context()) -> boolean().
is_held_up(Handle) ->
    py_nif:context_busy_ms(Handle) > ?BUSY_MS.

%% @doc All context processes, those of the default pool and others.
-spec contexts() -> [pid()].
contexts() ->
    [Pid || {Pid, _, _, _} <- list()].

%% @doc All contexts with their handles and labels, and since when they are there, in monotonic
%% milliseconds; in the order of the pool.
-spec list() -> [{pid(), py_nif:context(), label(), SinceMs :: integer()}].
list() ->
    try
        lists:keysort(3, [Row || {_, _, _, _} = Row <- ets:tab2list(?TABLE)])
    catch
        error:badarg -> []
    end.

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init(pos_integer()) -> {ok, no_state}.
init(Size) ->
    %% After a restart the contexts are all still there.
    _ = [monitor(process, Pid) || Pid <- contexts()],
    _ = [reap_later(Handle) || {{ending, Handle}} <- ets:match_object(?TABLE, {{ending, '_'}})],
    true = ets:insert(?TABLE, {pool, Size, atomics:new(1, [{signed, false}])}),
    list_handles(),
    {ok, no_state}.

%% @private
-spec handle_call(term(), gen_server:from(), no_state) -> {reply, term(), no_state}.
handle_call({join, Pid, Handle, Index, Label}, _From, State) ->
    _ = monitor(process, Pid),
    Rows = [{{pool, Index}, Handle} || is_integer(Index)],
    true = ets:insert(?TABLE, [{Pid, Handle, Label, now_ms()} | Rows]),
    list_handles(),
    Count = #{contexts => length(contexts())},
    py_reactor_events:execute([py_reactor, context, start], Count, #{context => Label, pid => Pid}),
    {reply, ok, State};
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), no_state) -> {noreply, no_state}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), no_state) -> {noreply, no_state} | {noreply, no_state, hibernate}.
handle_info({'DOWN', _Monitor, process, Pid, Reason}, State) ->
    _ = [leave(Row, Reason) || Row <- ets:take(?TABLE, Pid)],
    {noreply, State};
handle_info({reap, Handle}, State) ->
    reap(Handle),
    %% So that no garbage of this process, which does little, holds what native code has of the context.
    {noreply, State, hibernate};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%%--------------------------------------------------------------------------------------------------

list_handles() ->
    Pool = lists:keysort(1, ets:match_object(?TABLE, {{pool, '_'}, '_'})),
    true = ets:insert(?TABLE, {handles, [Handle || {_, Handle} <- Pool]}),
    ok.

leave({Pid, Handle, Label, SinceMs}, Reason) ->
    Measurements = #{contexts => length(contexts()), uptime_ms => now_ms() - SinceMs},
    Metadata = #{context => Label, pid => Pid, reason => Reason},
    py_reactor_events:execute([py_reactor, context, stop], Measurements, Metadata),
    true = ets:match_delete(?TABLE, {{pool, '_'}, Handle}),
    list_handles(),
    true = ets:insert(?TABLE, {{ending, Handle}}),
    reap_later(Handle).

reap_later(Handle) ->
    _ = erlang:send_after(?REAP_MS, self(), {reap, Handle}),
    ok.

reap(Handle) ->
    case py_nif:context_running(Handle) of
        true ->
            ok = py_nif:context_interrupt(Handle),
            reap_later(Handle);
        false ->
            true = ets:delete(?TABLE, {ending, Handle}),
            ok
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).
